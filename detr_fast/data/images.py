"""Reading one image file: a picture as 8-bit RGB, or stored numbers as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


class ImageError(ValueError):
    """An image file that exists but cannot be used; the message names the file and what is wrong."""


def load_image(path: str | Path, *, exif_transpose: bool = False) -> Image.Image:
    """Reads a file that Pillow knows (JPEG, PNG, TIFF, WebP, ...) as an 8-bit RGB image.

    Grayscale, palette and CMYK images are converted, transparency is dropped and of an animation the
    first frame is taken. 16-bit grayscale is scaled by its full range (65535 becomes 255), never clipped
    and never stretched, so that an image's brightness does not depend on its content.

    Args:
        path: the file.
        exif_transpose: turn the image as its EXIF orientation says. Off for data sets, because COCO
            annotations refer to the pixels as stored; on for a photograph that a person wants to see upright.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, truncated, not an image, or of a kind without a defined RGB value.
    """
    with _opened(path) as image:
        return _to_rgb(ImageOps.exif_transpose(image) if exif_transpose else image)


def load_pixels(path: str | Path, modes: Sequence[str]) -> NDArray[np.uint8]:
    """The stored values of an image that carries numbers (class labels, segment ids), never converted.

    Args:
        path: the file.
        modes: Pillow's names of the acceptable pixel formats: "L" and "P" give [h, w], "RGB" [h, w, 3].

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, truncated, not an image, or of another pixel format.
    """
    with _opened(path) as image:
        if image.mode not in modes:
            raise ValueError(f"expected the pixel format {' or '.join(modes)}; got {image.mode}")
        return np.array(image)


def read_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) as stored, and the EXIF orientation (1: upright), without decoding the pixels.

    Raises:
        FileNotFoundError, ImageError: as for `load_image`, as far as the header shows it.
    """
    with _opened(path, decode=False) as image:
        return image.size, image.getexif().get(ExifTags.Base.Orientation, 1)


@contextmanager
def _opened(path: str | Path, *, decode: bool = True) -> Iterator[Image.Image]:
    """The image; whatever is wrong with it, and a ValueError of the body, becomes an ImageError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            yield image
    except PermissionError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image in a format that Pillow reads") from None
    # What Pillow's decoders raise for damaged files, besides OSError.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"pixel values {values.min()}..{values.max()} are outside the 16-bit range 0..65535"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("a floating-point image has no defined range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
