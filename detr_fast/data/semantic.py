"""Semantic segmentation data sets: a class label for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detr_fast.boxes import tight_boxes
from detr_fast.data.coco_json import Part, read_json
from detr_fast.data.dataset import Exif, ImageDataset, OnBadImage, Transform
from detr_fast.data.images import ImageError, Size, load_pixels, read_header
from detr_fast.data.transforms import Target, mask_areas

IGNORED = 255
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class SemanticMaps(ImageDataset):
    """Images with label maps (samples: `ImageDataset`).

    A label map is an 8-bit grayscale or palette PNG of the image's size and base name; a pixel holds the
    label of its class, 0, 1, ... in the order of `classes`, or 255, which is ignored. The objects of a
    sample are the classes that are present, one mask each; boxes enclose the masks and areas count their
    pixels. All classes are stuff, and labels are category ids.

    Image ids are the base names where all of them are numbers, else 1, 2, ... in the order of the names.

    Args:
        image_dir: the folder of the images; those without a map are left alone.
        map_dir: the folder of the PNGs.
        classes: the names, or a JSON file with a list of them.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        masks: whether targets hold `masks`.
        num_classes: by default the number of the classes.
        part: only the images of this part of the data set.
        seed: of the transforms' random choices.
        on_bad_image, exif: as for `ImageDataset`.

    Raises:
        FileNotFoundError: a folder or the class file is missing, or a map has no image.
        ValueError: there is no map, a map has several images, or the class names are not usable.
        ImageError: when it is read: an image or map is damaged, their sizes differ, or a map holds a label
            of no class.
    """

    def __init__(
        self,
        image_dir: str | Path,
        map_dir: str | Path,
        classes: Sequence[str] | str | Path,
        transforms: Transform | None = None,
        *,
        masks: bool = True,
        num_classes: int | None = None,
        seed: int = 0,
        part: Part | None = None,
        on_bad_image: OnBadImage = "raise",
        exif: Exif = "auto",
    ) -> None:
        super().__init__(image_dir, transforms, seed=seed, on_bad_image=on_bad_image, exif=exif)
        self.map_dir = Path(map_dir)
        self.masks = masks
        self.annotation_file = None
        if isinstance(classes, (str, Path)):
            self.annotation_file = Path(classes)
            classes = _read_names(self.annotation_file)
        names = list(classes)
        if not 0 < len(names) <= IGNORED or not all(isinstance(name, str) for name in names):
            raise ValueError(f"classes: expected 1..{IGNORED} names; got {len(names)} entries: {names[:5]!r}")
        if num_classes is not None and num_classes < len(names):
            raise ValueError(f"num_classes: expected at least the {len(names)} classes; got {num_classes}")
        self._number_categories(dict(enumerate(names)), True, num_classes)
        self.things = frozenset()
        self.used_labels = frozenset(self.label_to_category)  # as far as is known without reading all maps
        if not self.map_dir.is_dir():
            raise FileNotFoundError(f"{self.map_dir}: no such folder of label maps")
        stems = sorted(path.stem for path in self.map_dir.glob("*.png"))
        if not stems:
            raise ValueError(f"{self.map_dir}: an empty data set: no PNG files")
        if part is not None:
            stems = [stem for stem, member in zip(stems, part.members(stems), strict=True) if member]
        numbered = all(stem.isascii() and stem.isdigit() for stem in stems)
        if numbered:
            stems.sort(key=int)
        self.image_ids = [int(stem) for stem in stems] if numbered else list(range(1, len(stems) + 1))
        self._maps = [f"{stem}.png" for stem in stems]
        self._files = self._find_images(stems)
        self.remarks = (f"{len(self)} images, {len(names)} classes",)
        self._choose_orientation()

    def _find_images(self, stems: list[str]) -> list[str]:
        by_stem: dict[str, list[str]] = {stem: [] for stem in stems}
        for path in sorted(self.image_dir.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.stem in by_stem:
                by_stem[path.stem].append(path.name)
        for stem, files in by_stem.items():
            if not files:
                raise FileNotFoundError(
                    f"{self.map_dir / stem}.png: no image of that name in {self.image_dir}"
                )
            if len(files) > 1:
                raise ValueError(f"{self.map_dir / stem}.png: several images in {self.image_dir}: {files}")
        return [by_stem[stem][0] for stem in stems]

    def _stated_size(self, index: int) -> Size:
        return read_header(self.map_dir / self._maps[index], thorough=False)[0]

    def semantic_map(self, index: int) -> Tensor:
        """The label of each pixel of sample `index` at the image's original size, [h, w] uint8, 255 =
        ignored."""
        path = self.map_dir / self._maps[self._position(index)]
        labels = load_pixels(path, ("L", "P"))
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED + 1))
        strange = [label for label in present.tolist() if len(self.category_names) <= label != IGNORED]
        if strange:
            raise ImageError(
                f"{path}: expected labels 0..{len(self.category_names) - 1} and {IGNORED}; got {strange[:5]}"
            )
        return torch.from_numpy(labels)

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        semantic_map = self.semantic_map(index)
        height, width = semantic_map.shape
        image = self._read_image(index, (width, height), self.map_dir / self._maps[index])
        labels, masks = class_masks(semantic_map)
        area = mask_areas(masks)
        return image, self._target(
            index, image, tight_boxes(masks), labels, area, masks if self.masks else None
        )


def class_masks(semantic_map: Tensor) -> tuple[Tensor, Tensor]:
    """The labels [T] int64, ascending, that occur in a map [h, w] uint8, and where [T, h, w] bool."""
    labels = torch.bincount(semantic_map.flatten(), minlength=IGNORED + 1)[:IGNORED].nonzero()[:, 0]
    return labels, semantic_map == labels[:, None, None]


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such class file")
    names = read_json(path)
    if not isinstance(names, list):
        raise ValueError(f"{path}: expected a list of class names; got {type(names).__name__}")
    return names
