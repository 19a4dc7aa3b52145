"""COCO detection and instance segmentation data sets."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detr_fast.data.dataset import CROWDS, Exif, ImageDataset, OnBadImage, Transform
from detr_fast.data.instances import NO_MASK, Instances, read_instances
from detr_fast.data.transforms import Target, mask_areas

logger = logging.getLogger(__name__)


class CocoDetection(ImageDataset):
    """Images with boxes, and masks where asked for, from a COCO `instances` file (samples: `ImageDataset`).

    `read_instances` tells which objects of the file these are. Crowds are no objects; images without objects
    are kept. A polygon too thin to cover the centre of a pixel shows only when it is drawn; with masks, its
    object is left out of the sample, and the first one is logged.

    Labels are the category ids themselves, as in the official DETR (`num_classes` = largest id + 1), or
    0, 1, ... in the order of the ids with `contiguous_labels=True`. All are things.

    Attributes:
        instances: what the file says.

    Args:
        image_dir: the folder of the images.
        annotations: the JSON file, or what `read_instances` made of it.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        masks: whether targets hold `masks`.
        num_classes: labels must be below it; by default what the categories need.
        contiguous_labels: renumber the categories; None: where most ids would stand for nothing.
        seed: of the transforms' random choices.
        on_bad_image, exif: as for `ImageDataset`.

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
        annotations: str | Path | Instances,
        transforms: Transform | None = None,
        *,
        masks: bool = False,
        num_classes: int | None = None,
        contiguous_labels: bool | None = False,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        exif: Exif = "auto",
    ) -> None:
        super().__init__(image_dir, transforms, seed=seed, on_bad_image=on_bad_image, exif=exif)
        if not isinstance(annotations, Instances):
            annotations = read_instances(annotations, segmentations=masks)
        if masks and annotations.masks is None:
            raise ValueError("annotations: expected instances with segmentations, as masks are wanted")
        self.instances = data = annotations
        self.annotation_file = data.path
        self.masks = masks
        self._take_images(data.images)
        self._number_categories(data.categories, contiguous_labels, num_classes)
        self.things = frozenset(self.label_to_category)
        self._told_empty = False

        rows = np.flatnonzero(~data.crowd)
        without_mask = data.left_out.get(NO_MASK, 0)
        if masks and without_mask and not len(rows):
            raise ValueError(
                f"{data.path}: none of the {without_mask} objects has a mask: is it for detection only?"
            )
        # A few arrays for all images: forked workers share those without copying them.
        categories, inverse = np.unique(data.category[rows], return_inverse=True)
        labels = [self._label(category, str(data.path)) for category in categories.tolist()]
        corners, sides = data.boxes_xywh[rows, :2], data.boxes_xywh[rows, 2:]
        self._rows = rows
        self._labels = np.array(labels, np.int64)[inverse]
        self._areas = data.area[rows].astype(np.float32)
        self._boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        self._first_row = np.searchsorted(data.image[rows], np.arange(len(self) + 1))
        self.used_labels = frozenset(labels)
        left_out = {CROWDS: int(data.crowd.sum()), **data.left_out}
        self._summarize(len(rows), int((np.diff(self._first_row) == 0).sum()), left_out)
        self.remarks += data.remarks
        self._choose_orientation()

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        image = self._read_image(index, self._sizes[index], self.annotation_file)
        rows = slice(self._first_row[index], self._first_row[index + 1])
        boxes, labels, areas = (
            torch.from_numpy(column[rows].copy()) for column in (self._boxes, self._labels, self._areas)
        )
        if not self.masks:
            return image, self._target(index, image, boxes, labels, areas, None)
        assert self.instances.masks is not None
        numbers = self.instances.mask_number[self._rows[rows]]
        masks = self.instances.masks.draw(numbers.tolist(), (image.height, image.width))
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
