"""Augmentation of an image together with its boxes and masks: DETR's (paper section A.4) and large-scale
jitter (Ghiasi et al. 2021), which mask classifiers train with.

A transform takes a PIL image, a target with `boxes` [T, 4] as absolute (x0, y0, x1, y1) pixels and maybe
`masks` [T, h, w] bool of the image's size, and the `random.Random` that makes every choice; the same
generator state gives the same sample. Images are resized by Pillow's antialiased bilinear filter and masks
to the nearest pixel, both as in the official DETR.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from detr_fast.boxes import box_xyxy_to_cxcywh, tight_boxes

Target: TypeAlias = dict[str, Tensor]

SCALES = tuple(range(480, 801, 32))
MAX_SIZE = 1333
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EvalTransform:
    """Resize to one scale, then `to_model_input`."""

    size: int = SCALES[-1]
    max_size: int = MAX_SIZE

    def __call__(self, image: Image.Image, target: Target, rng: random.Random) -> tuple[Tensor, Target]:
        return to_model_input(*resize(image, target, self.size, self.max_size))


@dataclass(frozen=True)
class TrainTransform:
    """Horizontal flip; then, each half of the time, a resize to a random scale, or a resize, a crop of
    random size and a resize to a random scale; then `to_model_input`.

    Attributes:
        scales: short sides to choose from, pixels.
        max_size: bound of the long side after the last resize.
        crop_scales: short sides before a crop.
        crop_size: smallest and largest side of a crop.
    """

    scales: Sequence[int] = SCALES
    max_size: int = MAX_SIZE
    crop_scales: Sequence[int] = (400, 500, 600)
    crop_size: tuple[int, int] = (384, 600)

    @classmethod
    def for_scales(cls, scales: Sequence[int], max_size: int = MAX_SIZE) -> TrainTransform:
        """Crops in the official proportion to the largest scale; the official ones where that is 800."""
        if not scales or min(scales) < 1:
            raise ValueError(f"scales: expected positive sizes in pixels; got {list(scales)}")

        def scaled(size: int) -> int:
            return max(1, round(size * max(scales) / SCALES[-1]))

        return cls(
            tuple(scales), max_size, (scaled(400), scaled(500), scaled(600)), (scaled(384), scaled(600))
        )

    def __call__(self, image: Image.Image, target: Target, rng: random.Random) -> tuple[Tensor, Target]:
        if rng.random() < 0.5:
            image, target = hflip(image, target)
        if rng.random() < 0.5:
            image, target = resize(image, target, rng.choice(self.crop_scales))
            image, target = crop(image, target, random_crop_box(image.size, *self.crop_size, rng))
        image, target = resize(image, target, rng.choice(self.scales), self.max_size)
        return to_model_input(image, target)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Horizontal flip; a resize to a random multiple of the size at which the image just fits into the
    square; where that is larger, a random crop of the square; then `to_model_input`.

    Samples are at most `size` x `size`; the batch pads them (`build_loader(..., size=(size, size))`). Where
    the target has masks, boxes and areas are those of what is left of them, as in Mask2Former.

    Attributes:
        size: side of the square, pixels.
        scale: smallest and largest multiple.
    """

    size: int = 1024
    scale: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected >= 1 pixel; got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected 0 < smallest <= largest; got {self.scale}")

    def __call__(self, image: Image.Image, target: Target, rng: random.Random) -> tuple[Tensor, Target]:
        if rng.random() < 0.5:
            image, target = hflip(image, target)
        ratio = rng.uniform(*self.scale) * self.size / max(image.size)
        image, target = _resize_to(
            image, target, (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        )
        image, target = crop(image, target, random_crop_box(image.size, self.size, self.size, rng))
        if "masks" in target:
            target = {**target, "boxes": tight_boxes(target["masks"]), "area": mask_areas(target["masks"])}
        return to_model_input(image, target)


def hflip(image: Image.Image, target: Target) -> tuple[Image.Image, Target]:
    """Mirrors left and right."""
    x0, y0, x1, y1 = target["boxes"].unbind(-1)
    target = {**target, "boxes": torch.stack([image.width - x1, y0, image.width - x0, y1], -1)}
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return ImageOps.mirror(image), target


def resized_size(width: int, height: int, size: int, max_size: int | None = None) -> tuple[int, int]:
    """The official size rule, as (width, height): the short side becomes `size`, the long side follows,
    rounded down. Where the long side would exceed `max_size`, the short side becomes
    `round(max_size * short / long)` instead, so that the long side comes within half the aspect ratio of
    `max_size`. No side gets smaller than one pixel.
    """
    short, long = min(width, height), max(width, height)
    if max_size is not None and long / short * size > max_size:
        size = max(1, round(max_size * short / long))
    if width < height:
        return size, int(size * height / width)
    return int(size * width / height), size


def resize(
    image: Image.Image, target: Target, size: int, max_size: int | None = None
) -> tuple[Image.Image, Target]:
    """Resizes by `resized_size`; boxes, areas and masks follow."""
    return _resize_to(image, target, resized_size(image.width, image.height, size, max_size))


def _resize_to(image: Image.Image, target: Target, size: tuple[int, int]) -> tuple[Image.Image, Target]:
    width, height = size
    x_ratio, y_ratio = width / image.width, height / image.height
    boxes = target["boxes"] * torch.tensor([x_ratio, y_ratio, x_ratio, y_ratio])
    target = {**target, "boxes": boxes, "area": target["area"] * (x_ratio * y_ratio)}
    if "masks" in target:
        masks = target["masks"].numpy().take(_nearest(image.width, width), 2)  # numpy: 5 times as fast
        target["masks"] = torch.from_numpy(masks.take(_nearest(image.height, height), 1))
    return image.resize(size, Image.Resampling.BILINEAR), target


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """The pixel of a row of `old` that each of `new` pixels shows, by torch's rule; the official threshold of
    one half acts on copies of zeros and ones, so copying is all there is to do."""
    row = torch.arange(old, dtype=torch.float64)[None, None]
    return interpolate(row, new, mode="nearest")[0, 0].long().numpy()


def random_crop_box(
    image_size: tuple[int, int], min_size: int, max_size: int, rng: random.Random
) -> tuple[int, int, int, int]:
    """A random (left, top, width, height) with sides in min_size..max_size, or the image's where smaller."""
    sides = [rng.randint(min(min_size, side), min(max_size, side)) for side in image_size]
    left, top = (rng.randint(0, whole - part) for whole, part in zip(image_size, sides, strict=True))
    return left, top, sides[0], sides[1]


def crop(image: Image.Image, target: Target, region: tuple[int, int, int, int]) -> tuple[Image.Image, Target]:
    """Cuts out (left, top, width, height). Boxes are cut to it; objects are removed where nothing is left of
    the box or of the mask; as in the official implementation, `area` becomes the area of what is left of
    the box."""
    left, top, width, height = region
    boxes = target["boxes"] - torch.tensor([left, top, left, top])
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides > 0).all(1)
    target = {**target, "boxes": boxes, "area": sides.prod(1)}
    keys = ["boxes", "labels", "area", "iscrowd"]
    if "masks" in target:
        target["masks"] = target["masks"][:, top : top + height, left : left + width]
        keep &= mask_areas(target["masks"]) > 0
        keys.append("masks")
    for key in keys:
        target[key] = target[key][keep]
    return image.crop((left, top, left + width, top + height)), target


def mask_areas(masks: Tensor) -> Tensor:
    """The pixels of masks [T, h, w] bool -> [T] float32."""
    return torch.from_numpy(np.count_nonzero(masks.numpy(), axis=(1, 2)).astype(np.float32))


def to_model_input(image: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """The image as [3, H, W] float32 with ImageNet's mean and deviation; boxes as (cx, cy, w, h) relative
    to the image; `size` as (height, width)."""
    width, height = image.size
    boxes = box_xyxy_to_cxcywh(target["boxes"]) / torch.tensor([width, height, width, height])
    return image_to_tensor(image), {**target, "boxes": boxes, "size": torch.tensor([height, width])}


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as [3, H, W] float32, normalised by ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return tensor.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(
        torch.tensor(IMAGENET_STD)[:, None, None]
    )
