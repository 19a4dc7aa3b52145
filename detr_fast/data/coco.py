"""COCO detection data sets."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from detr_fast.data.images import ImageError, load_image
from detr_fast.data.transforms import MAX_SIZE, SCALES, EvalTransform, Target, TrainTransform

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image, Target, random.Random], tuple[Any, Target]]


class CocoDetection(Dataset[tuple[Any, Target]]):
    """Images with boxes from a COCO `instances` file, in the order of the image ids.

    A sample is (image, target). The target holds, for T objects: `boxes` [T, 4] float32, `labels` [T] int64,
    `area` [T] float32 (square pixels), `iscrowd` [T] int64, and of the image `image_id` [1] int64 and
    `orig_size` [2] int64 (height, width). Without transforms the image is a PIL image and the boxes are
    (x0, y0, x1, y1) pixels; the transforms of this package make a normalised [3, H, W] tensor and boxes
    (cx, cy, w, h) relative to it, and add `size` [2] int64 (height, width).

    Crowds are dropped, boxes are cut to the image, boxes without an area are removed (and counted in one
    warning), and images without annotations are kept. Images are read as stored, without turning them by
    their EXIF orientation, unless only the turned image has the size that the annotation file states.

    Labels are the category ids themselves, as in the official DETR (`num_classes` = largest id + 1), or
    0, 1, ... in the order of the ids with `contiguous=True`. `label_to_category` leads back to category
    ids, `category_names` names the labels, `num_classes` counts them.

    The random choices of the transforms depend on `seed`, the epoch (`set_epoch`) and the index alone, so
    any number of workers, any order and a resumed run see the same samples.

    Args:
        image_dir: the folder of the images.
        annotation_file: the JSON file.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        num_classes: labels must be below it; by default what the categories need.
        contiguous: renumber the categories.
        seed: of the transforms' random choices.
        on_bad_image: "raise", or "skip": a missing or damaged image is logged once a process and the next
            readable sample stands in for it. Meant for training; evaluate with "raise".

    Raises:
        FileNotFoundError: the folder or the file is missing; an image is missing (when it is read).
        ValueError: the annotation file is not a usable COCO file; the message names the entry.
        ImageError: an image is damaged, or its size is not the annotated one (when it is read).
    """

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        transforms: Transform | None = None,
        *,
        num_classes: int | None = None,
        contiguous: bool = False,
        seed: int = 0,
        on_bad_image: Literal["raise", "skip"] = "raise",
    ) -> None:
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image: expected 'raise' or 'skip'; got {on_bad_image!r}")
        self.image_dir = Path(image_dir)
        self.annotation_file = Path(annotation_file)
        self.transforms = transforms
        self.seed = seed
        self.on_bad_image = on_bad_image
        self._bad_images: set[int] = set()
        # Shared memory, so that set_epoch reaches workers that live on from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if not self.image_dir.is_dir():
            raise FileNotFoundError(f"{self.image_dir}: no such image folder")

        content = _read_json(self.annotation_file)
        where = str(self.annotation_file)
        names = _category_names(content["categories"], where)
        self.category_to_label = {
            category: label if contiguous else category for label, category in enumerate(sorted(names))
        }
        self.label_to_category = {label: category for category, label in self.category_to_label.items()}
        self.category_names = {label: names[category] for label, category in self.label_to_category.items()}
        needed = max(self.label_to_category) + 1
        self.num_classes = needed if num_classes is None else num_classes

        images = _images_by_id(content["images"], where)
        self.image_ids = sorted(images)
        self._files = [images[i][0] for i in self.image_ids]
        self._sizes = [images[i][1] for i in self.image_ids]
        self._read_annotations(content["annotations"], where)

    def _read_annotations(self, annotations: list[dict[str, Any]], where: str) -> None:
        """Packs the boxes of all images into a few arrays: forked workers share those without copying."""
        position = {image_id: i for i, image_id in enumerate(self.image_ids)}
        rows, removed = [], 0
        for i, annotation in enumerate(annotations):
            entry = f"{where}: annotations[{i}] (id {_get(annotation, 'id', None)})"
            image_id, category = (_field(annotation, key, int, entry) for key in ("image_id", "category_id"))
            if image_id not in position:
                raise ValueError(f"{entry} refers to image {image_id}, which is not in the file")
            if category not in self.category_to_label:
                raise ValueError(f"{entry} refers to category {category}, which is not in the file")
            if annotation.get("iscrowd", 0):
                continue
            label = self.category_to_label[category]
            if not 0 <= label < self.num_classes:
                raise ValueError(
                    f"{entry} has category {category} as label {label}; labels must lie in "
                    f"0..{self.num_classes - 1} (num_classes = {self.num_classes})"
                )
            index = position[image_id]
            box = _clamped_box(annotation, *self._sizes[index], entry)
            if box is None:
                removed += 1
                continue
            area = annotation.get("area")
            if not isinstance(area, (int, float)):
                area = (box[2] - box[0]) * (box[3] - box[1])
            rows.append((index, label, area, *box))
        if removed:
            logger.warning("%s: left out %d boxes without an area inside their image", where, removed)
        table = np.array(rows, dtype=np.float64).reshape(-1, 7)
        table = table[np.argsort(table[:, 0], kind="stable")]
        self._first_row = np.searchsorted(table[:, 0], np.arange(len(self.image_ids) + 1))
        self._labels = table[:, 1].astype(np.int64)
        self._areas = table[:, 2].astype(np.float32)
        self._boxes = table[:, 3:].astype(np.float32)

    def __len__(self) -> int:
        return len(self.image_ids)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random choices of an epoch; call it before iterating over a loader."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        image, target = self._load(index) if self.on_bad_image == "raise" else self._load_next_good(index)
        if self.transforms is None:
            return image, target
        # A string seeds through SHA-512: neighbouring epochs and indices are unrelated, on every platform.
        rng = random.Random(f"{self.seed}/{int(self._epoch)}/{index}")
        return self.transforms(image, target, rng)

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        path, (width, height) = self.image_dir / self._files[index], self._sizes[index]
        image = load_image(path)
        if image.size != (width, height):
            image = load_image(path, exif_transpose=True)
        if image.size != (width, height):
            raise ImageError(
                f"{path}: the image is {image.width} x {image.height} pixels, "
                f"but {self.annotation_file} says {width} x {height}"
            )
        rows = slice(self._first_row[index], self._first_row[index + 1])
        labels = torch.from_numpy(self._labels[rows].copy())
        return image, {
            "boxes": torch.from_numpy(self._boxes[rows].copy()),
            "labels": labels,
            "area": torch.from_numpy(self._areas[rows].copy()),
            "iscrowd": torch.zeros_like(labels),
            "image_id": torch.tensor([self.image_ids[index]]),
            "orig_size": torch.tensor([height, width]),
        }

    def _load_next_good(self, index: int) -> tuple[Image.Image, Target]:
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if candidate in self._bad_images:
                continue
            try:
                return self._load(candidate)
            except (FileNotFoundError, ImageError) as error:
                self._bad_images.add(candidate)
                logger.warning("skipped: %s", error)
        raise ImageError(f"{self.image_dir}: none of the {len(self)} images can be read")


def build_detection_dataset(
    root: str | Path,
    split: Literal["train", "val"],
    *,
    train: bool,
    scales: Sequence[int] = SCALES,
    max_size: int = MAX_SIZE,
    num_classes: int | None = None,
    contiguous: bool = False,
    seed: int = 0,
    on_bad_image: Literal["raise", "skip"] = "raise",
) -> CocoDetection:
    """A split of a data set in the COCO 2017 layout.

    Args:
        root: holds `annotations/instances_{train,val}2017.json`, `train2017/` and `val2017/`.
        split: which of them.
        train: augment as DETR's training does; otherwise resize to the largest of `scales`.
        scales: short sides in pixels.
        max_size: bound of the long side.
        num_classes: as for `CocoDetection`, like the rest.
        contiguous: renumber the categories.
        seed: of the augmentation.
        on_bad_image: "raise" or "skip".

    Raises:
        FileNotFoundError: naming what is missing and the expected layout.
        ValueError, ImageError: as for `CocoDetection`.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split: expected 'train' or 'val'; got {split!r}")
    image_dir = Path(root) / f"{split}2017"
    annotation_file = Path(root) / "annotations" / f"instances_{split}2017.json"
    for path in (image_dir, annotation_file):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; expected the COCO 2017 layout: {root}/annotations/"
                f"instances_{{train,val}}2017.json, {root}/train2017/ and {root}/val2017/"
            )
    augmentation = TrainTransform.for_scales(scales, max_size)
    return CocoDetection(
        image_dir,
        annotation_file,
        augmentation if train else EvalTransform(max(scales), max_size),
        num_classes=num_classes,
        contiguous=contiguous,
        seed=seed,
        on_bad_image=on_bad_image,
    )


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(_get(content, key, None), list):
            raise ValueError(
                f"{path}: not a COCO instances file: expected an object with the lists 'images', "
                f"'annotations' and 'categories'; {key!r} is missing or not a list"
            )
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{path}: an empty data set: {key!r} has no entries")
    return content


def _get(entry: Any, key: str, default: Any) -> Any:
    return entry.get(key, default) if isinstance(entry, Mapping) else default


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    value = _get(entry, key, None)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: expected {key!r} as {kind.__name__}; got {value!r}")
    return value


def _category_names(categories: list[dict[str, Any]], where: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, category in enumerate(categories):
        entry = f"{where}: categories[{i}]"
        category_id = _field(category, "id", int, entry)
        if category_id in names or category_id < 0:
            raise ValueError(f"{entry}: expected a distinct id >= 0; got {category_id}")
        names[category_id] = _field(category, "name", str, entry)
    return names


def _images_by_id(images: list[dict[str, Any]], where: str) -> dict[int, tuple[str, tuple[int, int]]]:
    by_id: dict[int, tuple[str, tuple[int, int]]] = {}
    for i, image in enumerate(images):
        entry = f"{where}: images[{i}]"
        image_id, width, height = (_field(image, key, int, entry) for key in ("id", "width", "height"))
        if image_id in by_id:
            raise ValueError(f"{entry}: the image id {image_id} occurs twice")
        by_id[image_id] = _field(image, "file_name", str, entry), (width, height)
    return by_id


def _clamped_box(
    annotation: Mapping[str, Any], width: int, height: int, where: str
) -> tuple[float, float, float, float] | None:
    """The box as (x0, y0, x1, y1) inside the image; None where it has no area there."""
    bbox = annotation.get("bbox")
    try:
        x, y, w, h = (float(v) for v in bbox)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        x = y = w = h = math.nan
    if not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError(f"{where}: expected 'bbox' as four finite numbers [x, y, w, h]; got {bbox!r}")
    x0, x1 = (min(max(v, 0.0), float(width)) for v in (x, x + w))
    y0, y1 = (min(max(v, 0.0), float(height)) for v in (y, y + h))
    # Compared as float32, which is what the sample holds: a sliver may vanish there.
    if np.float32(x1) <= np.float32(x0) or np.float32(y1) <= np.float32(y0):
        return None
    return x0, y0, x1, y1
