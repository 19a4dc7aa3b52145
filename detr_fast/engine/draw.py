"""Detections drawn over an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]


def draw_detections(
    image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    """A copy of an RGB image with boxes and captions over it.

    Lines and letters scale with the image. Boxes come best first; the best is drawn last, on top.

    Args:
        image: any size.
        boxes_xyxy: [T, 4] in pixels.
        labels: [T], the class of each box; equal labels get equal colours.
        captions: [T], written at each box's upper left corner; "" writes nothing.
    """
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    width = max(1, round(short / 200))
    font = ImageFont.load_default(size=max(9, short / 32))
    for box, label, caption in list(zip(boxes_xyxy, labels, captions, strict=True))[::-1]:
        color = class_color(label)
        x0, y0, x1, y1 = map(round, box)
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=width)
        if caption:
            _write_caption(draw, (x0, y0), caption, color, font, canvas.size)
    return canvas


def class_color(label: int) -> Color:
    """A strong colour; neighbouring labels are far apart (golden-ratio steps around the hue circle)."""
    hue = (label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _write_caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    caption: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Writes on a filled plate above the corner, or inside the image where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    pad = max(1, round((bottom - top) / 5))
    plate_width, plate_height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(corner[0], 0), max(0, size[0] - plate_width))
    y = corner[1] - plate_height if corner[1] >= plate_height else max(corner[1], 0)
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text(
        (x + pad - left, y + pad - top), caption, font=font, fill="black" if luminance > 140 else "white"
    )
