"""Data sets on disk, by the files that they are made of, and the transforms of their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from detr_fast.data.coco import CocoDetection
from detr_fast.data.dataset import OnBadImage, Transform
from detr_fast.data.instances import read_instances
from detr_fast.data.layouts import DataSource, Split
from detr_fast.data.panoptic import CocoPanoptic
from detr_fast.data.semantic import SemanticMaps
from detr_fast.data.transforms import MAX_SIZE, SCALES, EvalTransform, LargeScaleJitter, TrainTransform

Augmentation: TypeAlias = Literal["detr", "lsj"]


def build_transforms(
    *,
    train: bool,
    scales: Sequence[int] = SCALES,
    max_size: int = MAX_SIZE,
    augmentation: Augmentation = "detr",
    lsj_size: int = 1024,
) -> Transform:
    """The transforms of training or evaluation; see `build_dataset` for the arguments."""
    _check_choice("augmentation", augmentation, get_args(Augmentation))
    if not train:
        return EvalTransform(max(scales), max_size)
    return (
        LargeScaleJitter(lsj_size) if augmentation == "lsj" else TrainTransform.for_scales(scales, max_size)
    )


def build_instances(
    source: DataSource, split: Split, transforms: Transform, *, segmentations: bool, **options: Any
) -> CocoDetection:
    """A split by an `instances` file; its segmentations are read where asked for.

    `options` are those of `CocoDetection`.
    """
    _check_choice("split", split, get_args(Split))
    located = source.instances(split)
    content = read_instances(located.annotations, segmentations=segmentations, part=located.part)
    folder, entries = located.place(content.images)
    content = dataclasses.replace(content, images=entries)
    dataset = CocoDetection(folder, content, transforms, exif=source.exif, **options)
    dataset.remarks = (f"{located.words}: {located.annotations}, images in {folder}", *dataset.remarks)
    return dataset


def build_segments(
    source: DataSource,
    split: Split,
    transforms: Transform,
    *,
    semantic: bool,
    contiguous_labels: bool | None,
    **options: Any,
) -> CocoPanoptic | SemanticMaps:
    """A split in the layout of COCO 2017: its panoptic files, or with `semantic` its label maps if any.

    `options` are those of the data sets.
    """
    _check_choice("split", split, get_args(Split))
    if source.root is None or source.train_json or source.val_json:
        raise ValueError(
            "train_json, val_json: they are for detection and instance; expected a folder for other tasks"
        )
    options["exif"] = source.exif
    root, annotations = source.root, source.root / "annotations"
    stem: Split = split
    if source.val_fraction is not None and not (root / "val2017").exists():
        stem, options["part"] = "train", source.part(split)
    images, maps = root / f"{stem}2017", root / f"semantic_{stem}2017"
    classes = annotations / "semantic_classes.json"
    dataset: CocoPanoptic | SemanticMaps
    if semantic and (maps.exists() or classes.exists()):
        _require(root, _SEMANTIC, images, maps, classes)
        dataset = SemanticMaps(images, maps, classes, transforms, **options)
    else:
        panoptic, maps = annotations / f"panoptic_{stem}2017.json", annotations / f"panoptic_{stem}2017"
        _require(root, _SEMANTIC if semantic else _PANOPTIC, images, panoptic, maps)
        options |= {"semantic": semantic, "contiguous_labels": contiguous_labels}
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
    """A split for detection with DETR's augmentation; see `build_dataset` for the arguments."""
    return build_instances(
        DataSource.of(data),
        split,
        build_transforms(train=train, scales=scales, max_size=max_size),
        segmentations=False,
        masks=False,
        num_classes=num_classes,
        contiguous_labels=contiguous_labels,
        seed=seed,
        on_bad_image=on_bad_image,
    )


_PANOPTIC = "{root}/annotations/panoptic_{{train,val}}2017.json and the folders of the same names"
_SEMANTIC = "{root}/semantic_{{train,val}}2017/ and {root}/annotations/semantic_classes.json, or " + _PANOPTIC


def _require(root: Path, layout: str, *paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; expected the COCO 2017 layout: {layout.format(root=root)}; "
                f"{root}/train2017/ and {root}/val2017/"
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}; got {value!r}")
