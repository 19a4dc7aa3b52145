"""Damaged image files of every format that can be written here: pixels of the right shape, or ImageError.

`python -m tests.fuzz.images --seconds 600`
"""

from __future__ import annotations

import io
import random
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from detr_fast.data import ImageError, load_image
from detr_fast.data.images import load_image_of_size, load_pixels, read_header, upright_size
from tests.fuzz.driver import Target, main

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F")
SIZE = (24, 17)


@cache
def encoded(kind: str, mode: str, turned: bool) -> bytes | None:
    """A small picture in one of the formats that Pillow writes; None where the format cannot hold it."""
    gradient = np.add.outer(np.arange(SIZE[1]), np.arange(SIZE[0])) * 5 % 256
    other = gradient.T.reshape(gradient.shape)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(gradient.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        picture = Image.fromarray(np.stack([gradient, other, gradient], -1).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    try:
        picture.save(buffer, kind, **({"exif": exif} if turned else {}))
    except Exception:
        return None
    return buffer.getvalue() if buffer.tell() < 100_000 else None


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        place = rng.randrange(min(len(data), rng.choice((64, 10**6))))
        what = rng.random()
        if what < 0.4:
            data[place] = rng.randrange(256)
        elif what < 0.6:
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif what < 0.8:
            del data[place + 1 :]
        else:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 16)))
    return bytes(data)


def case(rng: random.Random, folder: Path) -> None:
    Image.init()
    content = None
    while content is None:
        content = encoded(rng.choice(sorted(Image.SAVE)), rng.choice(MODES), rng.random() < 0.5)
    path = folder / "a.img"
    path.write_bytes(damaged(content, rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path, rng)
    finally:
        path.unlink()


def read(path: Path, rng: random.Random) -> None:
    what = rng.randrange(4)
    if what == 0:
        size, orientation = read_header(path)
        assert min(size) >= 0
        assert 1 <= orientation <= 8
        return
    if what == 1:
        assert load_pixels(path, ("L", "P")).ndim == 2
        return
    if what == 2:
        image = load_image_of_size(path, rng.choice((SIZE, SIZE[::-1])), upright=rng.random() < 0.5)
    else:
        image = load_image(path, exif_transpose=rng.random() < 0.5)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    header, orientation = read_header(path)
    assert image.size in (header, upright_size(header, orientation), header[::-1])


TARGET = Target("images", case, (ImageError,))

if __name__ == "__main__":
    main(TARGET)
