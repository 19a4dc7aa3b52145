"""The attention of object queries drawn over an image: heat maps or sampling points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from detr_fast.drawing.boxes import draw_detections
from detr_fast.drawing.masks import draw_instances
from detr_fast.models.decoder_attention import AttentionMaps, SamplingPoints
from detr_fast.structures import PaddedImages

GAP = 6
PANEL = (256, 480)  # pixels of a panel's longer side, at least and at most
ACROSS = 3  # queries in a row
SMOOTH = 3
REFERENCE_COLOR = (40, 230, 60)


def attention_pictures(
    attention: AttentionMaps | SamplingPoints,
    images: PaddedImages,
    image: Image.Image,
    queries: Sequence[int],
    *,
    boxes_xyxy: Sequence[Sequence[float]] | None = None,
    masks: Tensor | None = None,
    labels: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Draws, for each of some queries, what it found beside where the last decoder layer looked for it.

    Args:
        attention: of all queries.
        images: one image, as the model takes it.
        image: the same, to draw on.
        queries: [X], which queries.
        boxes_xyxy: [X, 4], what each found, in pixels of `image`.
        masks: [X, h, w] bool, likewise.
        labels: [X], the classes, for colours.
        captions: [X].
    """
    valid = ~images.mask[0]
    padded, size = images.mask.shape[1:], (int(valid[:, 0].sum()), int(valid[0].sum()))
    scale = min(max(max(image.size), PANEL[0]), PANEL[1]) / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    labels = [0] * len(queries) if labels is None else labels
    captions = [f"query {query}" for query in queries] if captions is None else captions
    if masks is not None:
        masks = F.interpolate(masks[None].float(), size=(height, width))[0].bool()
    pairs = []
    for i, query in enumerate(queries):
        one = slice(i, i + 1)
        box = None if boxes_xyxy is None else [[scale * side for side in boxes_xyxy[i]]]
        if masks is not None:
            found = draw_instances(small, masks[one], box, labels[one], captions[one])
        else:
            found = draw_detections(small, box or [[0, 0, 0, 0]], labels[one], captions[one])
        pairs.append((found, draw_attention(small, attention, query, padded, size)))
    return _grid(pairs, small.size)


def draw_attention(
    image: Image.Image,
    attention: AttentionMaps | SamplingPoints,
    query: int,
    padded_size: Sequence[int],
    image_size: Sequence[int],
) -> Image.Image:
    """A copy of an RGB image with the attention of one query over it.

    An attention map becomes heat, from its lowest to its highest. Sampling points become dots, from blue for
    little weight to red for the largest, with the reference point or box that they lie around in green.

    Args:
        image: what was looked at, any size.
        attention: of a batch; its first image counts.
        query: which query.
        padded_size: (H, W) of that batch.
        image_size: (height, width) of the image in it.
    """
    if isinstance(attention, AttentionMaps):
        return _heat(image, attention.maps[0, query].float().cpu(), padded_size, image_size)
    return _dots(image, attention, query, padded_size, image_size)


def _heat(image: Image.Image, weights: Tensor, padded: Sequence[int], size: Sequence[int]) -> Image.Image:
    maps = F.interpolate(weights[None, None], size=tuple(padded), mode="bilinear")[..., : size[0], : size[1]]
    maps = F.interpolate(maps, size=(image.height, image.width), mode="bilinear")[0, 0]
    heat = ((maps - maps.min()) / (maps.max() - maps.min()).clamp(min=1e-12)).numpy()
    gray = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    opacity = 0.35 + 0.5 * heat[..., None]
    colors = _colormap("inferno", heat)
    return _picture((1 - opacity) * 0.8 * gray + opacity * colors)


def _dots(
    image: Image.Image, samples: SamplingPoints, query: int, padded: Sequence[int], size: Sequence[int]
) -> Image.Image:
    locations, weights, reference = (
        x[0, query].float().cpu() for x in (samples.locations, samples.weights, samples.reference)
    )
    # drawn larger and shrunk again: smooth dots; the padded batch is larger than the picture
    span = SMOOTH * torch.tensor([image.width * padded[1] / size[1], image.height * padded[0] / size[0]])
    gray = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    canvas = _picture(0.2 + 0.3 * gray + 0.3 * np.asarray(image.convert("RGB"), np.float32) / 255)
    canvas = canvas.resize((SMOOTH * image.width, SMOOTH * image.height))
    draw = ImageDraw.Draw(canvas)
    radius = SMOOTH * max(2.0, max(image.size) / 120)
    weights = weights.flatten() / weights.max()
    colors = (255 * _colormap("turbo", 0.05 + 0.9 * weights.numpy())).round().astype(int)
    for i in weights.argsort().tolist():
        x, y = (locations.flatten(0, -2)[i] * span).tolist()
        corners = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(corners, fill=tuple(colors[i].tolist()), outline="black")
    _draw_reference(draw, (reference.unflatten(0, (-1, 2)) * span).flatten(), radius)
    return canvas.resize(image.size, Image.Resampling.LANCZOS)


def _colormap(name: str, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """values [...] in 0..1 -> RGB [..., 3] in 0..1."""
    import matplotlib

    return matplotlib.colormaps[name](values)[..., :3]


def _draw_reference(draw: ImageDraw.ImageDraw, reference: Tensor, radius: float) -> None:
    """A cross at a point (x, y), or a box (cx, cy, w, h), in pixels."""
    x, y, *sides = reference.tolist()
    width = max(2, round(radius / 2))
    if sides:
        half_width, half_height = (side / 2 for side in sides)
        corners = (x - half_width, y - half_height, x + half_width, y + half_height)
        draw.rectangle(corners, outline=REFERENCE_COLOR, width=width)
    arm = 3 * radius
    draw.line((x - arm, y, x + arm, y), fill=REFERENCE_COLOR, width=width)
    draw.line((x, y - arm, x, y + arm), fill=REFERENCE_COLOR, width=width)


def _grid(pairs: Sequence[tuple[Image.Image, Image.Image]], size: tuple[int, int]) -> Image.Image:
    width, height = size
    across, rows = max(1, min(ACROSS, len(pairs))), max(1, -(-len(pairs) // ACROSS))
    pair_width = 2 * width + GAP
    canvas = Image.new(
        "RGB", (across * (pair_width + 2 * GAP) - 2 * GAP, rows * (height + 2 * GAP) - 2 * GAP), "white"
    )
    for i, pair in enumerate(pairs):
        row, column = divmod(i, across)
        for side, panel in enumerate(pair):
            x = column * (pair_width + 2 * GAP) + side * (width + GAP)
            canvas.paste(panel, (x, row * (height + 2 * GAP)))
    return canvas


def _picture(pixels: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray((255 * pixels).round().clip(0, 255).astype(np.uint8))
