"""The data sets on disk, by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from detr_fast.data.coco import CocoDetection
from detr_fast.data.dataset import ImageDataset, OnBadImage, Transform
from detr_fast.data.instances import read_instances
from detr_fast.data.layouts import DataSource, Split
from detr_fast.data.panoptic import CocoPanoptic
from detr_fast.data.semantic import SemanticMaps
from detr_fast.data.transforms import MAX_SIZE, SCALES, EvalTransform, LargeScaleJitter, TrainTransform

Task: TypeAlias = Literal["detection", "instance", "panoptic", "semantic"]
Augmentation: TypeAlias = Literal["detr", "lsj"]


def build_dataset(
    data: str | Path | DataSource,
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
    """A split of a data set, for a task.

    Detection and instances (`CocoDetection`) need an `instances` file and a folder of images: given by hand
    in a `DataSource`, or in a folder of the layout of COCO 2017, Roboflow, CVAT or Label Studio:

    - `annotations/instances_{train,val}2017.json`, images in `{train,val}2017/`;
    - `{train,valid}/_annotations.coco.json` beside the images;
    - `annotations/instances_{train,val}.json`, images in `images/{train,val}/` or `images/`;
    - `annotations/instances_default.json` or `result.json` for all images, these in `images/`.

    The other tasks need the layout of COCO 2017 with images in `{train,val}2017/`:

    - panoptic: `annotations/panoptic_{train,val}2017.json` and the PNGs in
      `annotations/panoptic_{train,val}2017/` (`CocoPanoptic`);
    - semantic: label maps in `semantic_{train,val}2017/` and their class names in
      `annotations/semantic_classes.json` (`SemanticMaps`), or else the panoptic files
      (`CocoPanoptic(semantic=True)`).

    Where there is no validation split, a `DataSource` can cut one off. The first of the data set's remarks
    says what was taken for what.

    Args:
        data: the folder, or more about it.
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
    source = DataSource.of(data)
    options["exif"] = source.exif
    if task in ("detection", "instance"):
        located = source.instances(split)
        # Masks are evaluated by what the file says, also where targets hold none.
        content = read_instances(
            located.annotations, segmentations=task == "instance" or options["masks"], part=located.part
        )
        folder, entries = located.place(content.images)
        content = dataclasses.replace(content, images=entries)
        dataset: ImageDataset = CocoDetection(
            folder, content, transforms, contiguous_labels=contiguous_labels, **options
        )
        dataset.remarks = (f"{located.words}: {located.annotations}, images in {folder}", *dataset.remarks)
        return dataset
    if source.root is None or source.train_json or source.val_json:
        raise ValueError(f"train_json, val_json: they are for detection and instance; got the task {task!r}")
    root, annotations = source.root, source.root / "annotations"
    stem: Split = split
    if source.val_fraction is not None and not (root / "val2017").exists():
        stem, options["part"] = "train", source.part(split)
    images, maps = root / f"{stem}2017", root / f"semantic_{stem}2017"
    classes = annotations / "semantic_classes.json"
    if task == "semantic" and (maps.exists() or classes.exists()):
        _require(root, task, images, maps, classes)
        dataset = SemanticMaps(images, maps, classes, transforms, **options)
    else:
        panoptic, maps = annotations / f"panoptic_{stem}2017.json", annotations / f"panoptic_{stem}2017"
        _require(root, task, images, panoptic, maps)
        options |= {"semantic": task == "semantic", "contiguous_labels": contiguous_labels}
        dataset = CocoPanoptic(images, panoptic, maps, transforms, **options)
    words = f"COCO 2017 layout: {maps}, images in {images}"
    if "part" in options:
        words += f", {source.val_fraction:.0%} of the images held out for validation"
    dataset.remarks = (words, *dataset.remarks)
    return dataset


def build_detection_dataset(
    data: str | Path | DataSource,
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
        data,
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


_PANOPTIC = "{root}/annotations/panoptic_{{train,val}}2017.json and the folders of the same names"
_MAPS = "{root}/semantic_{{train,val}}2017/ and {root}/annotations/semantic_classes.json"
_LAYOUTS = {"panoptic": _PANOPTIC, "semantic": f"{_MAPS}, or {_PANOPTIC}"}


def _require(root: Path, task: Task, *paths: Path) -> None:
    for path in paths:
        if not path.exists():
            layout = _LAYOUTS[task].format(root=root)
            raise FileNotFoundError(
                f"{path} does not exist; expected the COCO 2017 layout: {layout}; "
                f"{root}/train2017/ and {root}/val2017/"
            )
