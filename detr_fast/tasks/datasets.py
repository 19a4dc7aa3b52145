"""The data set of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detr_fast.data import DataSource, ImageDataset
from detr_fast.data.build import Augmentation, build_transforms
from detr_fast.data.dataset import OnBadImage
from detr_fast.data.layouts import Split
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.tasks.table import TASKS


def build_dataset(
    data: str | Path | DataSource,
    split: Split,
    task: str,
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
        task: of `TASKS`.
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
    if task not in TASKS:
        raise ValueError(f"task: expected {' or '.join(map(repr, TASKS))}; got {task!r}")
    return TASKS[task].dataset(
        DataSource.of(data),
        split,
        build_transforms(
            train=train, scales=scales, max_size=max_size, augmentation=augmentation, lsj_size=lsj_size
        ),
        masks=TASKS[task].masks if masks is None else masks,
        contiguous_labels=contiguous_labels,
        num_classes=num_classes,
        seed=seed,
        on_bad_image=on_bad_image,
    )
