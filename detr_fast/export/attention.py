"""Multi-scale deformable attention in standard operators, for files that other runtimes read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.models import deformable_attention


@contextmanager
def standard_operators() -> Iterator[None]:
    """While it lasts, the models of this process attend by torch's operators alone.

    Replacing ours in a graph that is recorded already would take a third of the time of an export.
    """
    models: Any = deformable_attention
    ours = models.ms_deform_attn_fused
    models.ms_deform_attn_fused = fused_by_grid_sample
    try:
        yield
    finally:
        models.ms_deform_attn_fused = ours


def fused_by_grid_sample(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`detr_fast.ops.ms_deform_attn_fused` by `ms_deform_attn_by_grid_sample`."""
    sides = [side for shape in spatial_shapes for side in shape]
    tensors = (value, sampling_offsets, attention_logits, reference_points)
    return ms_deform_attn_by_grid_sample(*tensors, None, sides, None, None, None)


def ms_deform_attn_by_grid_sample(
    value: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    spatial_shapes: Tensor | None,
    sides: Sequence[int],
    points_per_level: Sequence[int] | None,
    deterministic: bool | None,
    backend: str | None,
) -> Tensor:
    """The operator `detr_fast::ms_deform_attn` by one `grid_sample` a level (arXiv:2010.04159, eq. 3).

    A value that is not finite leaks from corners of weight zero here.

    Args:
        value: [B, S, H, D].
        coordinates: see `detr_fast.ops.ms_deform_attn.arguments.DeformAttn`, as all others.
        weights: of the samples, or logits with `reference_points`.
        reference_points: None, [B, Q, N, 2] or [B, Q, N, 4].
        spatial_shapes: None; a tensor of level shapes raises ValueError.
        sides: height and width of each level, one after the other.
        points_per_level: P of each level; None where all have the same.
        deterministic: changes nothing.
        backend: changes nothing.

    Returns:
        [B, Q, H * D] in value's dtype.
    """
    if spatial_shapes is not None:
        raise ValueError("spatial_shapes: expected integers; got a tensor, which no exported file can follow")
    batch, _, heads, channels = value.shape
    queries = coordinates.shape[1]
    if reference_points is not None:
        weights = weights.flatten(3).softmax(-1)
    sampled = []
    start = 0
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    for n, points in enumerate(_levels(coordinates, points_per_level)):
        height, width = shapes[n]
        reference = None if reference_points is None else reference_points[:, :, None, n, None]
        grid = 2 * _locations(points, reference, height, width) - 1
        level = value[:, start : start + height * width].permute(0, 2, 3, 1)
        start = start + height * width
        sampled.append(
            F.grid_sample(
                level.reshape(batch * heads, channels, height, width),
                grid.to(value.dtype).transpose(1, 2).flatten(0, 1),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
        )
    # [B * H, D, Q, all points]
    weights = weights.flatten(3).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    total = (torch.cat(sampled, dim=-1) * weights.to(value.dtype)).sum(-1)
    return total.reshape(batch, heads * channels, queries).transpose(1, 2)


def _levels(coordinates: Tensor, points_per_level: Sequence[int] | None) -> Iterator[Tensor]:
    """[B, Q, H, P, 2] of each level."""
    if points_per_level is None:
        return iter(coordinates.unbind(3))
    return iter(coordinates.split(list(points_per_level), dim=3))


def _locations(points: Tensor, reference: Tensor | None, height: int, width: int) -> Tensor:
    """Where samples lie, (x, y) in 0..1 of the level: as given, or from offsets around references."""
    if reference is None:
        return points
    if reference.shape[-1] == 2:
        return reference + torch.stack((points[..., 0] / width, points[..., 1] / height), dim=-1)
    return reference[..., :2] + points / points.shape[-2] * reference[..., 2:] * 0.5
