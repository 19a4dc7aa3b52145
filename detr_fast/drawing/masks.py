"""Instance masks, panoptic segments and semantic maps drawn over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from detr_fast.drawing.boxes import CaptionPlates, Color, class_color, draw_detections, shade
from detr_fast.drawing.fonts import caption_font

Array = npt.NDArray[Any]

INSTANCE_OPACITY, SEGMENT_OPACITY = 0.45, 0.6
_PLATE = (0, 0, 0, 150)


def draw_instances(
    image: Image.Image,
    masks: Tensor | Array,
    boxes_xyxy: Sequence[Sequence[float]] | None,
    labels: Sequence[int],
    captions: Sequence[str],
) -> Image.Image:
    """A copy of an RGB image with semi-transparent, outlined masks, their boxes and captions over it.

    Instances come best first; the best is drawn last, on top.

    Args:
        image: any size (w, h).
        masks: [X, h, w] bool.
        boxes_xyxy: [X, 4] in pixels, or None for masks alone, captions inside them.
        labels: [X], the class of each; instances of a class get shades of one colour.
        captions: [X]; "" writes nothing.
    """
    from scipy import ndimage

    stack = _checked(masks, image, "masks", 3).astype(bool)
    pixels = np.asarray(image.convert("RGB"), np.float32).copy()
    colors = _shades(labels)
    thickness = _line_width(image)
    for mask, color in list(zip(stack, colors, strict=True))[::-1]:
        pixels[mask] += INSTANCE_OPACITY * (np.array(color, np.float32) - pixels[mask])
        pixels[mask & ~ndimage.binary_erosion(mask, iterations=thickness)] = color
    canvas = _picture(pixels)
    if boxes_xyxy is not None:
        return draw_detections(canvas, boxes_xyxy, labels, captions, colors)
    _write_inside(canvas, list(zip(stack, captions, strict=True)))
    return canvas


def draw_panoptic(
    image: Image.Image, segmentation: Tensor | Array, segments: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """A copy of an RGB image with its segments in colour, thin borders between them and captions inside.

    Things are strong, one shade an instance; stuff is pale and flat; pixels of no segment stay as they are.

    Args:
        image: any size (w, h).
        segmentation: [h, w], the segment id of each pixel, 0 = none.
        segments: {"id", "label", "isthing"} of each segment and, where it has one, its "caption".
    """
    ids = _checked(segmentation, image, "segmentation", 2)
    things = [segment for segment in segments if segment["isthing"]]
    colors: dict[int, Color] = {s["id"]: stuff_color(s["label"]) for s in segments}
    colors |= dict(zip([s["id"] for s in things], _shades([s["label"] for s in things]), strict=True))
    canvas = _painted(image, ids, colors)
    _write_inside(canvas, [(ids == s["id"], str(s.get("caption", ""))) for s in segments])
    return canvas


def draw_semantic(
    image: Image.Image, labels: Tensor | Array, names: Mapping[int, str], ignore: int = 255
) -> Image.Image:
    """An RGB image with its classes in colour and, below it, a legend of them, the largest first.

    Args:
        image: any size (w, h).
        labels: [h, w], the label of each pixel.
        names: what the legend calls the labels.
        ignore: the label of pixels that stay as they are.
    """
    label_map = _checked(labels, image, "labels", 2)
    present, counts = np.unique(label_map[label_map != ignore], return_counts=True)
    order = [int(label) for label in present[np.argsort(-counts, kind="stable")]]
    colors = {label: class_color(label) for label in order}
    canvas = _painted(image, label_map, colors)
    return _with_legend(canvas, [(names.get(label, str(label)), colors[label]) for label in order])


def stuff_color(label: int) -> Color:
    """A pale colour of the class's hue."""
    return shade(class_color(label), saturation=0.6, value=0.85)


def _shades(labels: Sequence[int]) -> list[Color]:
    """The class colour for the first instance of each class, and shades around it for further ones."""
    seen: dict[int, int] = {}
    colors = []
    for label in labels:
        count = seen.get(label, 0)
        seen[label] = count + 1
        # steps that do not repeat soon, as those of the class colours
        turn = (count * 0.618034) % 1.0 if count else 0.5
        colors.append(
            shade(
                class_color(label),
                hue=0.16 * (turn - 0.5),
                saturation=1 - 0.35 * (count % 2),
                value=1 - 0.3 * (count % 3) / 2,
            )
        )
    return colors


def _painted(image: Image.Image, ids: Array, colors: Mapping[int, Color]) -> Image.Image:
    """The image under the colours of `ids`, others left as they are, with light borders between ids."""
    from scipy import ndimage

    pixels = np.asarray(image.convert("RGB"), np.float32).copy()
    present, index = np.unique(ids, return_inverse=True)
    index = index.reshape(ids.shape)
    table = np.array([colors.get(int(i), (0, 0, 0)) for i in present], np.float32).reshape(-1, 3)
    opacity = np.array([SEGMENT_OPACITY if int(i) in colors else 0.0 for i in present], np.float32)
    pixels += opacity[index][..., None] * (table[index] - pixels)
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    if _line_width(image) > 2:
        border = ndimage.binary_dilation(border)
    pixels[border] += 0.75 * (255 - pixels[border])
    return _picture(pixels)


def _write_inside(canvas: Image.Image, parts: Sequence[tuple[Array, str]]) -> None:
    """Writes each caption on a dark plate where its mask is widest, larger masks first."""
    plates = CaptionPlates(canvas)
    for mask, caption in sorted(parts, key=lambda part: -int(part[0].sum())):
        if caption and mask.any():
            plates.write_around(caption, *_widest_place(mask), _PLATE)


def _widest_place(mask: Array) -> tuple[float, float]:
    """The pixel (x, y) of a mask that lies farthest from its border."""
    from scipy import ndimage

    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # the border of the picture is a border of the mask
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(columns[0] + x), float(rows[0] + y)


def _with_legend(canvas: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """The picture with rows of swatches and names below it."""
    if not entries:
        return canvas
    fonts = [caption_font(canvas.size, name) for name, _ in entries]
    draw = ImageDraw.Draw(canvas)
    line = max(
        round(draw.textbbox((0, 0), name, font=font)[3])
        for (name, _), font in zip(entries, fonts, strict=True)
    )
    gap = max(3, line // 2)
    places, x, row = [], gap, 0
    for (name, _), font in zip(entries, fonts, strict=True):
        width = line + gap // 2 + round(draw.textlength(name, font=font))
        if x > gap and x + width > canvas.width - gap:
            x, row = gap, row + 1
        places.append((x, canvas.height + gap + row * (line + gap)))
        x += width + 2 * gap
    picture = Image.new("RGB", (canvas.width, places[-1][1] + line + gap), "white")
    picture.paste(canvas)
    draw = ImageDraw.Draw(picture)
    for (name, color), (x, y), font in zip(entries, places, fonts, strict=True):
        # the swatch looks as the colour does over the picture
        mixed = tuple(round(SEGMENT_OPACITY * c + (1 - SEGMENT_OPACITY) * 128) for c in color)
        draw.rectangle((x, y, x + line - 1, y + line - 1), fill=mixed, outline="black")
        draw.text((x + line + gap // 2, y), name, font=font, fill="black")
    return picture


def _checked(values: Tensor | Array, image: Image.Image, name: str, ndim: int) -> Array:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != ndim or array.shape[-2:] != (image.height, image.width):
        shape = "[X, h, w]" if ndim == 3 else "[h, w]"
        raise ValueError(
            f"{name}: expected {shape} with (h, w) = {(image.height, image.width)}; got {list(array.shape)}"
        )
    return array


def _line_width(image: Image.Image) -> int:
    return max(1, round(min(image.size) / 250))


def _picture(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
