"""The data sets of the COCO 2017 layout, by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from detr_fast.data.coco import CocoDetection
from detr_fast.data.dataset import ImageDataset, OnBadImage, Transform
from detr_fast.data.instances import read_instances
from detr_fast.data.panoptic import CocoPanoptic
from detr_fast.data.semantic import SemanticMaps
from detr_fast.data.transforms import MAX_SIZE, SCALES, EvalTransform, LargeScaleJitter, TrainTransform

Split: TypeAlias = Literal["train", "val"]
Task: TypeAlias = Literal["detection", "instance", "panoptic", "semantic"]
Augmentation: TypeAlias = Literal["detr", "lsj"]


def build_dataset(
    root: str | Path,
    split: Split,
    task: Task,
    *,
    train: bool,
    masks: bool | None = None,
    contiguous_labels: bool | None = False,
    scales: Sequence[int] = SCALES,
    max_size: int = MAX_SIZE,
    augmentation: Augmentation = "detr",
    lsj_size: int = 1024,
    num_classes: int | None = None,
    seed: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> ImageDataset:
    """A split of a data set in the COCO 2017 layout, for a task.

    `root` holds `train2017/` and `val2017/` with the images, and

    - detection, instance: `annotations/instances_{train,val}2017.json` (`CocoDetection`);
    - panoptic: `annotations/panoptic_{train,val}2017.json` and the PNGs in
      `annotations/panoptic_{train,val}2017/` (`CocoPanoptic`);
    - semantic: label maps in `semantic_{train,val}2017/` and their class names in
      `annotations/semantic_classes.json` (`SemanticMaps`), or else the panoptic files
      (`CocoPanoptic(semantic=True)`).

    Args:
        root: see above.
        split: "train" or "val".
        task: see above.
        train: augment; otherwise resize to the largest of `scales`.
        masks: whether targets hold masks; by default for every task but detection.
        contiguous_labels: labels 0, 1, ... instead of category ids (label maps have no others); None: where
            most ids would stand for nothing.
        scales: short sides in pixels.
        max_size: bound of the long side.
        augmentation: of training: "detr", as DETR's, or "lsj", large-scale jitter, as Mask2Former's.
        lsj_size: side of its square in pixels; scales and max_size are evaluation's alone then.
        num_classes: labels must be below it; by default what the categories need.
        seed: of the augmentation.
        on_bad_image: as for `ImageDataset`.

    Raises:
        FileNotFoundError: naming what is missing and the expected layout.
        ValueError, ImageError: as for the data set.
    """
    for name, value, choices in (
        ("split", split, get_args(Split)),
        ("task", task, get_args(Task)),
        ("augmentation", augmentation, get_args(Augmentation)),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}; got {value!r}")
    transforms: Transform = EvalTransform(max(scales), max_size)
    if train:
        transforms = (
            LargeScaleJitter(lsj_size)
            if augmentation == "lsj"
            else TrainTransform.for_scales(scales, max_size)
        )
    options: dict[str, Any] = {
        "masks": task != "detection" if masks is None else masks,
        "num_classes": num_classes,
        "seed": seed,
        "on_bad_image": on_bad_image,
    }
    root = Path(root)
    images, annotations = root / f"{split}2017", root / "annotations"
    maps, classes = root / f"semantic_{split}2017", annotations / "semantic_classes.json"
    if task == "semantic" and (maps.exists() or classes.exists()):
        _require(root, task, images, maps, classes)
        return SemanticMaps(images, maps, classes, transforms, **options)
    if task in ("detection", "instance"):
        instances = annotations / f"instances_{split}2017.json"
        _require(root, task, images, instances)
        # Masks are evaluated by what the file says, also where targets hold none.
        content = read_instances(instances, segmentations=task == "instance" or options["masks"])
        return CocoDetection(images, content, transforms, contiguous_labels=contiguous_labels, **options)
    panoptic, pngs = annotations / f"panoptic_{split}2017.json", annotations / f"panoptic_{split}2017"
    _require(root, task, images, panoptic, pngs)
    return CocoPanoptic(
        images,
        panoptic,
        pngs,
        transforms,
        semantic=task == "semantic",
        contiguous_labels=contiguous_labels,
        **options,
    )


def build_detection_dataset(
    root: str | Path,
    split: Split,
    *,
    train: bool,
    scales: Sequence[int] = SCALES,
    max_size: int = MAX_SIZE,
    num_classes: int | None = None,
    contiguous_labels: bool | None = False,
    seed: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> CocoDetection:
    """`build_dataset` for detection with DETR's augmentation."""
    dataset = build_dataset(
        root,
        split,
        "detection",
        train=train,
        scales=scales,
        max_size=max_size,
        num_classes=num_classes,
        contiguous_labels=contiguous_labels,
        seed=seed,
        on_bad_image=on_bad_image,
    )
    assert isinstance(dataset, CocoDetection)
    return dataset


_INSTANCES = "{root}/annotations/instances_{{train,val}}2017.json"
_PANOPTIC = "{root}/annotations/panoptic_{{train,val}}2017.json and the folders of the same names"
_MAPS = "{root}/semantic_{{train,val}}2017/ and {root}/annotations/semantic_classes.json"
_LAYOUTS = {
    "detection": _INSTANCES,
    "instance": _INSTANCES,
    "panoptic": _PANOPTIC,
    "semantic": f"{_MAPS}, or {_PANOPTIC}",
}


def _require(root: Path, task: Task, *paths: Path) -> None:
    for path in paths:
        if not path.exists():
            layout = _LAYOUTS[task].format(root=root)
            raise FileNotFoundError(
                f"{path} does not exist; expected the COCO 2017 layout: {layout}; "
                f"{root}/train2017/ and {root}/val2017/"
            )
