"""The plainest form in PyTorch: any device, float64 where the maps are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from detr_fast.ops.point_sample.arguments import Rows, result_dtype
from detr_fast.ops.point_sample.checks import range_error

_AT_ONCE = 2**22  # samples of a backward that are scattered at once


def forward(maps: Tensor, rows: Rows) -> Tensor:
    """[R, C, P] samples; arguments as the public function's, already checked."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    known, chosen, located = _located(maps.shape, rows, dtype)
    pixels = maps.flatten(2).mT  # [M, h * w, C]
    out = torch.zeros(*located.shape[:2], maps.shape[1], dtype=dtype, device=maps.device)
    for pixel, weight, present in _corners(located, *maps.shape[2:]):
        corner = pixels[chosen[:, None], pixel].to(dtype)
        out += torch.where(present[:, :, None], corner * weight[:, :, None], 0)
    out = out.masked_fill(~known[:, None, None], torch.nan)
    return out.mT.contiguous().to(result_dtype(maps.dtype))


def backward(grad_out: Tensor, shape: torch.Size, rows: Rows, deterministic: bool = False) -> Tensor:
    """The gradient [M, C, h, w] of maps of that shape, in grad_out's dtype.

    `deterministic` changes nothing: on a GPU the sums are sorted, on the CPU torch's setting decides.
    """
    dtype = torch.promote_types(grad_out.dtype, torch.float32)
    known, chosen, located = _located(shape, rows, dtype)
    count, channels, height, width = shape
    grad_maps = torch.zeros(count * height * width, channels, dtype=dtype, device=grad_out.device)
    step = max(1, _AT_ONCE // max(1, located.shape[1] * channels))
    for first in range(0, len(located), step):
        some = slice(first, first + step)
        grad = grad_out[some].to(dtype).mT
        for pixel, weight, present in _corners(located[some], height, width):
            share = torch.where((present & known[some, None])[:, :, None], grad * weight[:, :, None], 0)
            pixel += chosen[some, None] * (height * width)
            grad_maps.index_put_((pixel,), share, accumulate=True)
    return grad_maps.view(count, height * width, channels).mT.reshape(shape).to(grad_out.dtype)


def _located(shape: torch.Size, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: whether its indices are in range [R], its map [R] and its points [R, P, 2]."""
    points, map_index, point_index = rows.points.to(dtype), rows.map_index, rows.point_index
    every = torch.arange(rows.count(shape), device=points.device)
    known, chosen = _in_range("map_index", every if map_index is None else map_index, shape[0])
    if point_index is None:
        return known, chosen, points
    known_points, located = _in_range("point_index", point_index, points.shape[0])
    return known & known_points, chosen, points[located]


def _in_range(name: str, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which numbers are in [0, count), and the numbers, 0 in place of others; an error on the CPU."""
    known = (index >= 0) & (index < count)
    if index.device.type == "cpu" and not known.all():
        raise range_error(name, index, count, int(known.logical_not().nonzero()[0]))
    return known, index.where(known, 0)


def _corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of the four pixels around each point: number (0 where outside), weight, whether it is in the map."""
    extent = torch.tensor((width, height), dtype=points.dtype, device=points.device)
    x, y = (points * extent - 0.5).unbind(-1)
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height)  # false for NaN
    x, y = x.where(inside, 0), y.where(inside, 0)
    left, top = x.floor(), y.floor()
    right, lower = x - left, y - top
    for column, across in ((left, 1 - right), (left + 1, right)):
        for row, down in ((top, 1 - lower), (top + 1, lower)):
            present = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = (row.long() * width + column.long()).where(present, 0)
            yield pixel, across * down, present
