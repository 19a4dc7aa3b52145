"""Detections drawn over an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw

from detr_fast.drawing.fonts import caption_font

Color = tuple[int, int, int]


def draw_detections(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """A copy of an RGB image with boxes and captions over it.

    Lines and letters scale with the image. Boxes come best first; the best is drawn last, on top.

    Args:
        image: any size.
        boxes_xyxy: [T, 4] in pixels.
        labels: [T], the class of each box; equal labels get equal colours.
        captions: [T], written at each box's upper left corner; "" writes nothing.
        colors: [T], instead of those of the classes.
    """
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(min(canvas.size) / 200))
    colors = [class_color(label) for label in labels] if colors is None else colors
    boxes = [(round(x0), round(y0), round(max(x0, x1)), round(max(y0, y1))) for x0, y0, x1, y1 in boxes_xyxy]
    for box, color in list(zip(boxes, colors, strict=True))[::-1]:
        draw.rectangle(box, outline=color, width=width)
    plates = CaptionPlates(canvas)
    for box, caption, color in zip(boxes, captions, colors, strict=True):
        plates.write_at_box(caption, box, color)
    return canvas


class CaptionPlates:
    """Captions over a picture, each on a filled plate.

    Those that would cover an earlier one, or half of a tiny picture's height, are left out.
    """

    def __init__(self, canvas: Image.Image) -> None:
        self.size = canvas.size
        self._draw = ImageDraw.Draw(canvas, "RGBA")
        self._taken: list[tuple[float, float, float, float]] = []

    def write_at_box(self, caption: str, box: tuple[float, float, float, float], color: Color) -> None:
        """Above the upper left corner, else inside it, else below the box."""
        x0, y0, _, y1 = box
        height = self._plate(caption)[1]
        corners = [(x0, y) for y in (y0 - height, y0, y1) if 0 <= y <= self.size[1] - height]
        self._write(caption, corners or [(x0, y0)], color)

    def write_around(self, caption: str, x: float, y: float, color: tuple[int, ...]) -> None:
        """Around the point (x, y)."""
        width, height = self._plate(caption)[:2]
        self._write(caption, [(x - width / 2, y - height / 2)], color)

    def _plate(self, caption: str) -> tuple[int, int, int]:
        """Width, height and margin."""
        font = caption_font(self.size, caption)
        left, top, right, bottom = map(round, self._draw.textbbox((0, 0), caption, font=font))
        pad = max(1, round((bottom - top) / 5))
        return right - left + 2 * pad, bottom - top + 2 * pad, pad

    def _write(self, caption: str, corners: list[tuple[float, float]], color: tuple[int, ...]) -> None:
        width, height, pad = self._plate(caption)
        if not caption or 2 * height > self.size[1]:
            return
        for x, y in corners:
            # inside the picture
            x = min(max(x, 0), max(0, self.size[0] - width))
            y = min(max(y, 0), max(0, self.size[1] - height))
            plate = (x, y, x + width, y + height)
            if all(
                plate[0] >= t[2] or t[0] >= plate[2] or plate[1] >= t[3] or t[1] >= plate[3]
                for t in self._taken
            ):
                break
        else:
            return
        self._taken.append(plate)
        self._draw.rectangle(plate, fill=color)
        font = caption_font(self.size, caption)
        left, top = self._draw.textbbox((0, 0), caption, font=font)[:2]
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        fill = "black" if luminance > 140 else "white"
        self._draw.text((x + pad - left, y + pad - top), caption, font=font, fill=fill)


def class_color(label: int) -> Color:
    """A strong colour; neighbouring labels are far apart (golden-ratio steps around the hue circle)."""
    # labels whose hues come close after many steps differ in saturation or value
    return _rgb((label * 0.618034) % 1.0, (0.85, 0.72, 1.0)[label % 3], (0.95, 0.85, 0.72)[label // 3 % 3])


def shade(color: Color, hue: float = 0.0, saturation: float = 1.0, value: float = 1.0) -> Color:
    """A colour turned by `hue` of the circle, its saturation and value multiplied."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    return _rgb((h + hue) % 1.0, s * saturation, v * value)


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
