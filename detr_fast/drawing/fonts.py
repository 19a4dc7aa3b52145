"""Letters for captions: Pillow's own for ASCII, DejaVu Sans, which matplotlib brings, for other alphabets."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


def caption_font(size: tuple[int, int], text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Letters that a text can be read in over a picture of this size."""
    height = max(9, min(size) / 32)
    if text.isascii():
        return ImageFont.load_default(size=height)
    return ImageFont.truetype(_dejavu(), size=height)


def drawable(category_id: int, name: str) -> str:
    """What a class is called in pictures: its name, or its id where the fonts lack a letter of it."""
    known = name.isascii() or all(ord(letter) in _letters() for letter in name)
    return name if known else f"class {category_id}"


def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_dejavu()).get_charmap())
