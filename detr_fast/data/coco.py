"""COCO detection and instance segmentation data sets."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detr_fast.data.coco_json import category_names, field, get, images_by_id, read_coco
from detr_fast.data.dataset import ImageDataset, OnBadImage, Transform
from detr_fast.data.packed_masks import PackedMasks
from detr_fast.data.transforms import Target, mask_areas

logger = logging.getLogger(__name__)


class CocoDetection(ImageDataset):
    """Images with boxes, and masks where asked for, from a COCO `instances` file (samples: `ImageDataset`).

    Crowds are dropped, boxes are cut to the image, boxes without an area are removed (and counted in one
    warning), and images without annotations are kept.

    With masks, so are objects whose segmentation cannot cover a pixel: none given, polygons of fewer than
    three points, an empty encoding. A polygon too thin to cover the centre of a pixel shows only when it is
    drawn; its object is left out of the sample, and the first one is logged.

    Labels are the category ids themselves, as in the official DETR (`num_classes` = largest id + 1), or
    0, 1, ... in the order of the ids with `contiguous_labels=True`. All are things.

    Args:
        image_dir: the folder of the images.
        annotation_file: the JSON file.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        masks: whether targets hold `masks`.
        num_classes: labels must be below it; by default what the categories need.
        contiguous_labels: renumber the categories.
        seed: of the transforms' random choices.
        on_bad_image: as for `ImageDataset`.

    Raises:
        FileNotFoundError: the folder or the file is missing; an image is missing (when it is read).
        ValueError: the annotation file is not a usable COCO file; the message names the entry. With masks
            also: a segmentation is malformed, does not decode or has another size than its image, or no
            object has a usable one.
        ImageError: an image is damaged, or its size is not the annotated one (when it is read).
    """

    annotation_file: Path

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        transforms: Transform | None = None,
        *,
        masks: bool = False,
        num_classes: int | None = None,
        contiguous_labels: bool = False,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        super().__init__(image_dir, transforms, seed=seed, on_bad_image=on_bad_image)
        self.annotation_file = Path(annotation_file)
        content = read_coco(self.annotation_file, "instances")
        where = str(self.annotation_file)
        self._number_categories(category_names(content["categories"], where), contiguous_labels, num_classes)
        self.things = frozenset(self.label_to_category)
        images = images_by_id(content["images"], where)
        self.image_ids = list(images)
        self._files = [name for name, _ in images.values()]
        self._sizes = [size for _, size in images.values()]
        self._masks = PackedMasks() if masks else None
        self._told_empty = False
        self._read_annotations(content["annotations"], where)

    def _read_annotations(self, annotations: list[Any], where: str) -> None:
        """Packs the boxes of all images into a few arrays: forked workers share those without copying."""
        position = {image_id: i for i, image_id in enumerate(self.image_ids)}
        rows, without_area, without_mask = [], 0, 0
        for i, annotation in enumerate(annotations):
            entry = f"{where}: annotations[{i}] (id {get(annotation, 'id', None)})"
            image_id, category = (field(annotation, key, int, entry) for key in ("image_id", "category_id"))
            if image_id not in position:
                raise ValueError(f"{entry} refers to image {image_id}, which is not in the file")
            label = self._label(category, entry)
            if annotation.get("iscrowd", 0):
                continue
            index = position[image_id]
            width, height = self._sizes[index]
            box = _clamped_box(annotation, width, height, entry)
            if box is None:
                without_area += 1
                continue
            if self._masks is not None and not self._masks.append(
                annotation.get("segmentation"), (height, width), entry
            ):
                without_mask += 1
                continue
            area = annotation.get("area")
            if not isinstance(area, (int, float)):
                area = (box[2] - box[0]) * (box[3] - box[1])
            rows.append((index, label, area, *box))
        if without_area:
            logger.warning("%s: left out %d boxes without an area inside their image", where, without_area)
        if without_mask and not rows:
            raise ValueError(
                f"{where}: none of the {without_mask} objects has a mask: is it for detection only?"
            )
        if without_mask:
            logger.warning("%s: left out %d objects without a usable mask", where, without_mask)
        table = np.array(rows, dtype=np.float64).reshape(-1, 7)
        self._order = np.argsort(table[:, 0], kind="stable")  # the numbers of the masks, image after image
        table = table[self._order]
        self._first_row = np.searchsorted(table[:, 0], np.arange(len(self.image_ids) + 1))
        self._labels = table[:, 1].astype(np.int64)
        self._areas = table[:, 2].astype(np.float32)
        self._boxes = table[:, 3:].astype(np.float32)

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        image = self._read_image(index, self._sizes[index], self.annotation_file)
        rows = slice(self._first_row[index], self._first_row[index + 1])
        boxes, labels, areas = (
            torch.from_numpy(column[rows].copy()) for column in (self._boxes, self._labels, self._areas)
        )
        if self._masks is None:
            return image, self._target(index, image, boxes, labels, areas, None)
        masks = self._masks.draw(self._order[rows], (image.height, image.width))
        covers = mask_areas(masks) > 0
        if not covers.all():
            if not self._told_empty:
                logger.warning(
                    "%s: image %d has an object whose mask covers no pixel; such objects are left out",
                    self.annotation_file,
                    self.image_ids[index],
                )
                self._told_empty = True
            boxes, labels, areas, masks = boxes[covers], labels[covers], areas[covers], masks[covers]
        return image, self._target(index, image, boxes, labels, areas, masks)


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
