"""COCO panoptic data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr_fast.boxes import tight_boxes
from detr_fast.data.coco_json import (
    ImageEntries,
    Part,
    as_flag,
    category_names,
    field,
    find_image,
    get,
    image_entries,
    read_coco,
    short,
)
from detr_fast.data.dataset import CROWDS, Exif, ImageDataset, OnBadImage, Transform
from detr_fast.data.images import ImageError, load_pixels
from detr_fast.data.semantic import IGNORED, class_masks
from detr_fast.data.transforms import Target, mask_areas


class CocoPanoptic(ImageDataset):
    """Images with the segments of a COCO `panoptic` file and its PNGs (samples: `ImageDataset`).

    A pixel of a PNG holds the id of its segment as R + 256 G + 65536 B; 0 is unlabelled. The objects of a
    sample are the segments, things and stuff, without crowds; boxes enclose the masks and areas count their
    pixels. `panoptic_truth` and `semantic_map` give what evaluation compares with.

    Labels are the category ids themselves, as in the official DETR, or 0, 1, ... in the order of the ids
    with `contiguous_labels=True` (133 for COCO: 80 things, then 53 stuff). Things are the categories with
    `isthing` 1.

    Args:
        image_dir: the folder of the images.
        annotation_file: the JSON file.
        panoptic_dir: the folder of the PNGs.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        masks: whether targets hold `masks`.
        semantic: samples for semantic segmentation instead: one object for each class that is present,
            crowds included.
        num_classes: labels must be below it; by default what the categories need.
        contiguous_labels: renumber the categories; None: where most ids would stand for nothing.
        part: only the images of this part of the data set.
        seed: of the transforms' random choices.
        on_bad_image, exif: as for `ImageDataset`.

    Raises:
        FileNotFoundError: a folder or the file is missing; an image or a PNG is missing (when it is read).
        ValueError: the annotation file is not a usable panoptic file; the message names the entry.
        ImageError: when it is read: an image or PNG is damaged, their sizes are not the annotated one, or
            the segments of the PNG are not those of the JSON file.
    """

    annotation_file: Path

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        panoptic_dir: str | Path,
        transforms: Transform | None = None,
        *,
        masks: bool = True,
        semantic: bool = False,
        num_classes: int | None = None,
        contiguous_labels: bool | None = False,
        part: Part | None = None,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        exif: Exif = "auto",
    ) -> None:
        super().__init__(image_dir, transforms, seed=seed, on_bad_image=on_bad_image, exif=exif)
        self.annotation_file = Path(annotation_file)
        self.panoptic_dir = Path(panoptic_dir)
        self.masks = masks
        self.semantic = semantic
        if not self.panoptic_dir.is_dir():
            raise FileNotFoundError(f"{self.panoptic_dir}: no such folder of panoptic PNGs")
        content = read_coco(self.annotation_file, "panoptic")
        where = str(self.annotation_file)
        self._number_categories(category_names(content["categories"], where), contiguous_labels, num_classes)
        self.things = frozenset(
            self.category_to_label[field(category, "id", int, where)]
            for i, category in enumerate(content["categories"])
            if _flag(category, "isthing", f"{where}: categories[{i}]")
        )
        self._read_annotations(image_entries(content["images"], where), part, content["annotations"], where)

    def _read_annotations(
        self, known: ImageEntries, part: Part | None, annotations: list[Any], where: str
    ) -> None:
        images = known.part(part)
        positions, place = known.positions(), images.positions()
        files: list[str | None] = [None] * len(known)
        rows = []
        for i, annotation in enumerate(annotations):
            entry = f"{where}: annotations[{i}]"
            position = find_image(positions, get(annotation, "image_id", None))
            if position is None:
                raise ValueError(
                    f"{entry} refers to image {short(annotation.get('image_id'))}, which is not in the file"
                )
            image_id = known.ids[position]
            if files[position] is not None:
                raise ValueError(f"{entry}: image {image_id} has another annotation before it")
            files[position] = field(annotation, "file_name", str, entry)
            if image_id not in place:
                continue
            seen: set[int] = set()
            for j, segment in enumerate(field(annotation, "segments_info", list, entry)):
                part_of = f"{entry} (image {image_id}): segments_info[{j}]"
                segment_id, category = (field(segment, key, int, part_of) for key in ("id", "category_id"))
                if segment_id in seen or not 0 < segment_id < 2**24:
                    raise ValueError(f"{part_of}: expected a distinct id in 1..{2**24 - 1}; got {segment_id}")
                seen.add(segment_id)
                label = self._label(category, part_of)
                rows.append((place[image_id], segment_id, label, _flag(segment, "iscrowd", part_of)))
        for image_id, file in zip(known.ids, files, strict=True):
            if file is None:
                raise ValueError(f"{where}: image {image_id} has no annotation")
        self._take_images(images)
        self._png_files = [str(files[positions[image_id]]) for image_id in images.ids]
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self._segments = table[np.lexsort((table[:, 1], table[:, 0]))]
        self._first_row = np.searchsorted(self._segments[:, 0], np.arange(len(self) + 1))
        objects = self._segments[(self._segments[:, 3] == 0) | self.semantic]
        self.used_labels = frozenset(objects[:, 2].tolist())
        empty = len(self) - len(np.unique(objects[:, 0]))
        self._summarize(len(objects), empty, {CROWDS: len(self._segments) - len(objects)})
        self._choose_orientation()

    def panoptic_truth(self, index: int) -> tuple[Tensor, list[dict[str, Any]]]:
        """The segments of sample `index` at the image's original size, crowds included.

        Returns:
            ids: [h, w] int64, the segment of each pixel, 0 = unlabelled.
            segments: for each its `id`, `label`, `isthing`, `iscrowd` and `area` in pixels.
        """
        numbers, ids, labels, crowds = self._read_segments(self._position(index))
        areas = np.bincount(numbers.ravel(), minlength=len(ids) + 1)[1:]
        rows = zip(ids.tolist(), labels.tolist(), crowds.tolist(), areas.tolist(), strict=True)
        return torch.from_numpy(np.append(0, ids)[numbers]), [
            {"id": i, "label": label, "isthing": label in self.things, "iscrowd": crowd, "area": area}
            for i, label, crowd, area in rows
        ]

    def semantic_map(self, index: int) -> Tensor:
        """The label of each pixel of sample `index` at the image's original size, [h, w] uint8, crowds
        included, 255 = unlabelled. Labels must be below 255."""
        if self.num_classes > IGNORED:
            raise ValueError(
                f"num_classes: a semantic map holds labels up to {IGNORED - 1}; got {self.num_classes} "
                "classes (pass contiguous_labels=True)"
            )
        numbers, _, labels, _ = self._read_segments(self._position(index))
        return torch.from_numpy(np.append(IGNORED, labels).astype(np.uint8)[numbers])

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        image = self._read_image(index, self._sizes[index], self.annotation_file)
        if self.semantic:
            labels, masks = class_masks(self.semantic_map(index))
        else:
            numbers, _, all_labels, crowds = self._read_segments(index)
            kept = torch.from_numpy(np.flatnonzero(~crowds))
            labels = torch.from_numpy(all_labels)[kept]
            masks = torch.from_numpy(numbers) == (kept + 1)[:, None, None]
        area = mask_areas(masks)
        boxes = tight_boxes(masks)
        return image, self._target(index, image, boxes, labels, area, masks if self.masks else None)

    def _read_segments(
        self, index: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """For each pixel the number of its segment, from 1 on, 0 = unlabelled [h, w]; and the segments' ids
        (ascending), labels and crowd flags."""
        path = self.panoptic_dir / self._png_files[index]
        _, ids, labels, crowds = self._segments[self._first_row[index] : self._first_row[index + 1]].T
        rgb = load_pixels(path, ("RGB",))
        width, height = self._sizes[index]
        if rgb.shape[:2] != (height, width):
            raise ImageError(
                f"{path}: the segments are {rgb.shape[1]} x {rgb.shape[0]} pixels, "
                f"but {self.annotation_file} says {width} x {height}"
            )
        pixels = (rgb @ np.array([1, 256, 65536], np.int32)).ravel()
        # Segments are long runs: looking up each run's first pixel costs a fraction of sorting the pixels.
        starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
        run_ids = pixels[starts]
        known = np.append(0, ids)
        numbers = np.searchsorted(known, run_ids).clip(max=len(ids)).astype(np.int32)
        for found, expected, problem in (
            (known, run_ids, f"has segments that {self.annotation_file} does not list"),
            (run_ids, ids, f"lacks segments that {self.annotation_file} lists"),
        ):
            absent = np.setdiff1d(expected, found)
            if len(absent):
                raise ImageError(
                    f"{path}: image {self.image_ids[index]} {problem}: ids {absent[:5].tolist()}"
                    + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
                )
        lengths = np.diff(np.append(starts, len(pixels)))
        return np.repeat(numbers, lengths).reshape(height, width), ids, labels, crowds.astype(bool)


def _flag(entry: Any, key: str, where: str) -> bool:
    """0 or 1; a crowd flag may be missing."""
    value = get(entry, key, None)
    flag = as_flag(value)
    if flag is None or (value is None and key == "isthing"):
        raise ValueError(f"{where}: expected {key!r} as 0 or 1; got {short(value)}")
    return flag
