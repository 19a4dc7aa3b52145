"""What all data sets share: reading images, bad ones among them, class numbers, seeds and epochs."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detr_fast.data.coco_json import ImageEntries
from detr_fast.data.images import ImageError, Size, load_image_of_size, read_header, upright_size
from detr_fast.data.transforms import Target

logger = logging.getLogger(__name__)

Transform: TypeAlias = Callable[[Image.Image, Target, random.Random], tuple[Any, Target]]
MAX_LABEL = 99_999  # a class head of more rows is a mistake
Exif: TypeAlias = Literal["auto", "apply", "ignore"]

CROWDS = "crowds"
HEADERS = 1000  # images that are looked at when a data set is opened, of many
OnBadImage: TypeAlias = Literal["raise", "skip"]


class ImageDataset(Dataset[tuple[Any, Target]]):
    """Images with objects, in the order of the image ids.

    A sample is (image, target). The target holds, for T objects: `boxes` [T, 4] float32, `labels` [T] int64,
    `area` [T] float32 (square pixels), `iscrowd` [T] int64, where asked for `masks` [T, h, w] bool, and of
    the image `image_id` [1] int64 and `orig_size` [2] int64 (height, width). Without transforms the image
    is a PIL image and the boxes are (x0, y0, x1, y1) pixels; the transforms of this package make a
    normalised [3, H, W] tensor and boxes (cx, cy, w, h) relative to it, and add `size` [2] int64 (height,
    width).

    An image with an EXIF orientation is read as stored or turned upright, whichever has the size that the
    annotations state. Where both have it, `exif` decides for the whole data set: "apply" turns, "ignore" does
    not, and "auto" does what the sizes of the other images tell, or turns, as current annotation tools do.

    The random choices of the transforms depend on `seed`, the epoch (`set_epoch`) and the index alone, so
    any number of workers, any order and a resumed run see the same samples.

    Attributes:
        image_ids: ascending; sample i is image `image_ids[i]`.
        num_classes: labels lie below it.
        label_to_category: for each label that stands for something, the category id of the files.
        category_to_label: the way back.
        category_names: names by label.
        things: the labels of countable objects; the others are stuff.
        used_labels: the labels that objects have.
        num_objects: how many objects there are to learn from; None where that shows only in the images.
        contiguous_labels: whether labels are 0, 1, ... rather than the category ids.
        exif: "apply" or "ignore" where that was chosen or the sizes told it, else "auto".
        remarks: what a person should know before training on it, a line each.
        annotation_file: where the categories were read, if from a file.

    Args:
        image_dir: the folder of the images.
        transforms: called as `transforms(image, target, rng)` with a `random.Random`.
        seed: of the transforms' random choices.
        on_bad_image: "raise", or "skip": a sample whose files are missing, damaged or contradict each other
            is logged once a process and the next good one stands in for it. Meant for training; evaluate
            with "raise".
        exif: see above.
    """

    image_ids: list[int]
    num_classes: int
    label_to_category: dict[int, int]
    category_to_label: dict[int, int]
    category_names: dict[int, str]
    things: frozenset[int]
    used_labels: frozenset[int]
    num_objects: int | None = None
    contiguous_labels: bool
    annotation_file: Path | None
    _files: list[str]
    _sizes: list[Size]

    def __init__(
        self,
        image_dir: str | Path,
        transforms: Transform | None,
        *,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        exif: Exif = "auto",
    ) -> None:
        if exif not in get_args(Exif):
            raise ValueError(f"exif: expected 'auto', 'apply' or 'ignore'; got {exif!r}")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image: expected 'raise' or 'skip'; got {on_bad_image!r}")
        self.image_dir = Path(image_dir)
        self.transforms = transforms
        self.seed = seed
        self.on_bad_image = on_bad_image
        self.exif = exif
        self.remarks: tuple[str, ...] = ()
        self._bad_images: set[int] = set()
        # Shared memory, so that set_epoch reaches workers that live on from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if not self.image_dir.is_dir():
            raise FileNotFoundError(f"{self.image_dir}: no such image folder")

    def __len__(self) -> int:
        return len(self.image_ids)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random choices of an epoch; call it before iterating over a loader."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        index = self._position(index)
        image, target = self._load(index) if self.on_bad_image == "raise" else self._load_next_good(index)
        if self.transforms is None:
            return image, target
        # A string seeds through SHA-512: neighbouring epochs and indices are unrelated, on every platform.
        rng = random.Random(f"{self.seed}/{int(self._epoch)}/{index}")
        return self.transforms(image, target, rng)

    def _load(self, index: int) -> tuple[Image.Image, Target]:
        """The sample before the transforms."""
        raise NotImplementedError

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

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        return index % len(self)

    def _read_image(self, index: int, size: Size, stated_by: Path) -> Image.Image:
        """The image, which must have that (width, height)."""
        path, (width, height) = self.image_dir / self._files[index], size
        image = load_image_of_size(path, size, upright=self.exif != "ignore")
        if image.size != size:
            raise ImageError(
                f"{path}: the image is {image.width} x {image.height} pixels, "
                f"but {stated_by} says {width} x {height}"
            )
        return image

    def _stated_size(self, index: int) -> Size:
        """The (width, height) of the image that the annotations were made on."""
        return self._sizes[index]

    def _choose_orientation(self) -> None:
        """Settles `exif` by the images whose sizes tell what the annotations were made on, with a remark.

        It looks at all images, or of many at some and only then at all where one of those has an orientation.
        """
        step = -(-len(self) // HEADERS)
        seen = self._orientations(range(0, len(self), step))
        if seen.total() and step > 1:
            seen += self._orientations(i for i in range(len(self)) if i % step)
        if not seen.total():
            return
        told = seen["upright"] + seen["stored"]
        reason = "as asked for" if self.exif != "auto" else "as the others" if told else "as is usual"
        if self.exif == "auto" and told:
            self.exif = "apply" if seen["upright"] >= seen["stored"] else "ignore"
        line = (
            f"{seen.total()} images have an EXIF orientation: by their size {seen['upright']} are annotated "
            f"upright, {seen['stored']} as stored"
        )
        if unclear := seen["unclear"]:
            line += f", {unclear} {'as stored' if self.exif == 'ignore' else 'upright'} {reason}"
        self.remarks += (line,)

    def _orientations(self, indices: Iterable[int]) -> Counter[str]:
        """How many images have an EXIF orientation, by what their size tells about it."""

        def look(index: int) -> str | None:
            try:
                size, orientation = read_header(self.image_dir / self._files[index], thorough=False)
                upright, stated = upright_size(size, orientation), self._stated_size(index)
            except (OSError, ImageError):
                return None  # told when the image is read
            if orientation == 1 or stated not in (size, upright):
                return None
            return "unclear" if size == upright else "upright" if stated == upright else "stored"

        with ThreadPoolExecutor(8) as pool:
            return Counter(kind for kind in pool.map(look, indices) if kind is not None)

    def _target(
        self,
        index: int,
        image: Image.Image,
        boxes: Tensor,
        labels: Tensor,
        area: Tensor,
        masks: Tensor | None,
    ) -> Target:
        target = {
            "boxes": boxes,
            "labels": labels,
            "area": area,
            "iscrowd": torch.zeros_like(labels),
            "image_id": torch.tensor([self.image_ids[index]]),
            "orig_size": torch.tensor([image.height, image.width]),
        }
        return target if masks is None else {**target, "masks": masks}

    def _take_images(self, images: ImageEntries) -> None:
        self.image_ids, self._files, self._sizes = images.numbers, images.files, images.sizes
        if self.image_ids != images.ids:
            strange = next(i for i, n in zip(images.ids, self.image_ids, strict=True) if i != n)
            self.remarks += (f"image ids are no integers of 64 bits, as {strange!r}: numbered from 1",)
        if repeated := len(self) - len(set(self._files)):
            self.remarks += (f"{repeated} images are listed again under another id",)

    def _summarize(self, objects: int, empty: int, left_out: Mapping[str, int]) -> None:
        """The first remark: images and objects, and what is left out of them and why."""
        self.num_objects = objects
        losses = [f"{count} {reason}" for reason, count in left_out.items() if count]
        if any(count for reason, count in left_out.items() if reason != CROWDS):
            logger.warning("%s: left out %s", self.annotation_file, ", ".join(losses))
        line = f"{len(self)} images ({empty} without objects), {objects} objects"
        self.remarks = (line + (f"; left out: {', '.join(losses)}" if losses else ""), *self.remarks)

    def _number_categories(
        self, names: Mapping[int, str], contiguous_labels: bool | None, num_classes: int | None
    ) -> None:
        """Labels are the ids themselves, or 0, 1, ... in the order of the ids."""
        if contiguous_labels is None:
            contiguous_labels = max(names) >= max(100, 4 * len(names))  # COCO's are not that sparse
        if not contiguous_labels and max(names) > MAX_LABEL:
            raise ValueError(
                f"{self.annotation_file}: expected category ids up to {MAX_LABEL} as labels; "
                f"got {max(names)} (pass contiguous_labels=True)"
            )
        self.contiguous_labels = contiguous_labels
        self.category_to_label = {
            category: label if contiguous_labels else category for label, category in enumerate(sorted(names))
        }
        self.label_to_category = {label: category for category, label in self.category_to_label.items()}
        self.category_names = {label: names[category] for label, category in self.label_to_category.items()}
        self.num_classes = max(self.label_to_category) + 1 if num_classes is None else num_classes

    def _label(self, category: int, entry: str) -> int:
        if category not in self.category_to_label:
            raise ValueError(f"{entry} refers to category {category}, which is not in the file")
        label = self.category_to_label[category]
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{entry} has category {category} as label {label}; labels must lie in "
                f"0..{self.num_classes - 1} (num_classes = {self.num_classes})"
            )
        return label
