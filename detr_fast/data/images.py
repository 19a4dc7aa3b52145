"""Reading one image file: a picture as 8-bit RGB, or stored numbers as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Size = tuple[int, int]

# What makes a picture upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image file that exists but cannot be used; the message names the file and what is wrong."""


class TooManyPixelsError(ImageError):
    """An image that is larger than allowed."""


def load_image(path: str | Path, *, exif_transpose: bool = False) -> Image.Image:
    """Reads a file that Pillow knows (JPEG, PNG, TIFF, WebP, ...) as an 8-bit RGB image.

    Grayscale, palette and CMYK images are converted, transparency is dropped and of an animation the
    first frame is taken. 16-bit grayscale is scaled by its full range (65535 becomes 255), never clipped
    and never stretched, so that an image's brightness does not depend on its content.

    Args:
        path: the file.
        exif_transpose: turn the image upright, as its EXIF orientation says. Off, the pixels are those that
            are stored (of a TIFF they are always upright).

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, truncated, not an image, or of a kind without a defined RGB value.
    """
    with _opened(path) as image:
        return to_rgb(_turned(image, _orientation(image)) if exif_transpose else image)


def decode_image(content: bytes, name: str, *, max_pixels: int | None = None) -> Image.Image:
    """The bytes of an image file as an 8-bit RGB image, turned upright as its EXIF orientation says.

    Args:
        content: of the file.
        name: what errors call it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        TooManyPixelsError: more than `max_pixels`.
        ImageError: as for `load_image`.
    """
    with _explained(name):
        if not content:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(content)) as image:
            _refuse_programs(image)
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise TooManyPixelsError(
                    f"expected at most {max_pixels} pixels; got {image.width} x {image.height}"
                )
            image.load()
            return to_rgb(_turned(image, _orientation(image)))


def load_image_of_size(path: str | Path, size: Size, *, upright: bool) -> Image.Image:
    """Reads a file as `load_image` does, turned or as stored, whichever has the given (width, height).

    Args:
        path: the file.
        size: what annotations say about the image that they were made on.
        upright: whether to turn the image where the size does not tell.

    Raises:
        FileNotFoundError, ImageError: as for `load_image`. Where neither has the size, the stored image is
            returned.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        turned = upright_size(image.size, orientation) == size
        return to_rgb(_turned(image, orientation) if turned and (upright or image.size != size) else image)


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


def read_header(path: str | Path, *, thorough: bool = True) -> tuple[Size, int]:
    """(width, height) as stored, and the EXIF orientation 1..8 (1: upright).

    Args:
        path: the file.
        thorough: also look behind the pixels, where PNG files may state it; this decodes those that do not
            state it before.

    Raises:
        FileNotFoundError, ImageError: as for `load_image`, as far as the header shows it.
    """
    with _opened(path, decode=False) as image:
        size = image.size
        if image.format == "TIFF" or (image.format == "PNG" and not thorough and "exif" not in image.info):
            return size, 1  # Pillow turns TIFF files itself
        return size, _orientation(image)


def upright_size(size: Size, orientation: int) -> Size:
    """The (width, height) of the image that is turned upright."""
    return (size[1], size[0]) if orientation >= 5 else size


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where there is none that makes sense."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged note beside pixels that are sound
        return 1
    return orientation if orientation in _TURNS else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


@contextmanager
def _opened(path: str | Path, *, decode: bool = True) -> Iterator[Image.Image]:
    """The image of a file, see `_explained`."""
    path = Path(path)
    with _explained(path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such image file")
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            _refuse_programs(image)
            if decode:
                image.load()
            yield image


def _refuse_programs(image: Image.Image) -> None:
    if image.format == "EPS":  # Pillow would run it
        raise ValueError("PostScript is a program, not a picture")


@contextmanager
def _explained(name: object) -> Iterator[None]:
    """Whatever is wrong with an image, and a ValueError of the body, becomes an ImageError."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except TooManyPixelsError as error:
        raise TooManyPixelsError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that Pillow reads") from None
    except MemoryError:
        raise ImageError(f"{name}: needs more memory than there is") from None
    except (ValueError, OSError) as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise ImageError(f"{name}: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """As `load_image` does; ValueError for pixels without a defined RGB value."""
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
