"""Images in the forms that people hold them in, as RGB pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from detr_fast.data import ImageError, load_image
from detr_fast.data.images import to_rgb

ImageLike: TypeAlias = Image.Image | npt.NDArray[Any] | Tensor | str | Path

KINDS = "a path, a PIL image, [h, w, 3] uint8 or a [3, h, w] tensor"


def is_one_image(images: Any) -> bool:
    """Whether it is one image rather than several; arrays and tensors of four dimensions are batches."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | Path | Image.Image)


def as_images(images: ImageLike | Iterable[ImageLike]) -> Iterator[Image.Image]:
    """Each of one or several images, see `as_image`; each is read when it is asked for."""
    if is_one_image(images):
        yield as_image(images, "images")
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for i, image in enumerate(images):
            yield as_image(image, f"images[{i}]")
    else:
        raise TypeError(f"images: expected {KINDS}, or several; got {type(images).__name__}")


def as_image(image: Any, name: str = "image") -> Image.Image:
    """One image as RGB.

    Args:
        image: a path, whose file is turned upright as its EXIF orientation says; a PIL image of any mode, as
            it is stored; an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] uint8; or a tensor [1, h, w],
            [3, h, w] or [4, h, w], uint8 or floats in 0..1. Colours are RGB; gray becomes three equal
            channels, and a fourth channel (alpha) is dropped.
        name: what errors call it.

    Raises:
        FileNotFoundError, ImageError: as for `load_image`.
        TypeError: of another type or dtype.
        ValueError: of another shape, or without pixels, or floats outside 0..1.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image).expanduser(), exif_transpose=True)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"{name}: expected at least 1 x 1 pixels; got {image.width} x {image.height}")
        try:
            return to_rgb(image)
        except (ValueError, OSError) as error:
            raise ImageError(f"{name}: {error}") from error
    if isinstance(image, Tensor):
        return _of_pixels(_of_tensor(image, name), name, "[1, 3 or 4, h, w]", image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"{name}: expected an array of uint8; got {image.dtype}")
        pixels = image[..., None] if image.ndim == 2 else image
        return _of_pixels(pixels, name, "[h, w] or [h, w, 1, 3 or 4]", image)
    raise TypeError(f"{name}: expected {KINDS}; got {type(image).__name__}")


def _of_tensor(image: Tensor, name: str) -> npt.NDArray[Any]:
    """A tensor's values as uint8, channels last where it has three dimensions."""
    values = image.detach().cpu()
    if values.is_floating_point():
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):
            low, high = values.min().item(), values.max().item()
            raise ValueError(f"{name}: expected floats in 0..1; got {low:.4g}..{high:.4g}")
        values = (values.float() * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise TypeError(f"{name}: expected a tensor of uint8 or floats; got {values.dtype}")
    return (values.permute(1, 2, 0) if values.ndim == 3 else values).numpy()


def _of_pixels(pixels: npt.NDArray[Any], name: str, expected: str, given: Any) -> Image.Image:
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"{name}: expected {expected}; got {list(given.shape)}")
    if 0 in pixels.shape:
        raise ValueError(f"{name}: expected at least 1 x 1 pixels; got {list(given.shape)}")
    rgb = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    return Image.fromarray(np.ascontiguousarray(rgb))
