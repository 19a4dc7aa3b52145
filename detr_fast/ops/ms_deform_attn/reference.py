"""Multi-scale deformable attention in plain PyTorch: the meaning that every backend is held to.

Differentiable by autograd (twice, too), on any device, in float64 for float64 values and in float32
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn.arguments import DeformAttn


def forward(call: DeformAttn) -> Tensor:
    """The operator: [B, Q, H * D] in value's dtype."""
    wide = torch.float64 if call.value.dtype == torch.float64 else torch.float32
    value, coordinates, weights = (t.to(wide) for t in call[:3])
    level_shapes = call.level_shapes
    if call.reference_points is not None:
        references = call.reference_points.to(wide)
        coordinates = sampling_locations(references, coordinates, level_shapes, call.points_per_level)
        weights = weights.flatten(3).softmax(-1).view_as(weights)
    levels = value.split([height * width for height, width in level_shapes], dim=1)
    samples = [
        t.unbind(3) if call.points_per_level is None else t.split(call.points, 3)
        for t in (coordinates, weights)
    ]
    per_level = list(map(_sample, levels, level_shapes, *samples))
    return torch.stack(per_level).sum(0).flatten(2).to(call.value.dtype)


def sampling_locations(
    reference_points: Tensor,
    offsets: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    points_per_level: Sequence[int] | None = None,
) -> Tensor:
    """Deformable DETR, section 4.1 and appendix A.4: where a query samples.

    2-d references are centres and offsets count pixels of the level; 4-d references are boxes (cx, cy,
    w, h) and P offset units span half a box.
    """
    if points_per_level is not None:
        references, pieces = reference_points.split(1, 2), offsets.split(tuple(points_per_level), 3)
        located = [
            sampling_locations(reference, some.unsqueeze(3), [size]).squeeze(3)
            for reference, some, size in zip(references, pieces, level_shapes, strict=True)
        ]
        return torch.cat(located, 3)
    reference = reference_points[:, :, None, :, None]
    if reference_points.shape[-1] == 2:
        width_height = offsets.new_tensor([[width, height] for height, width in level_shapes])
        return reference + offsets / width_height[:, None]
    points = offsets.shape[-2]
    return reference[..., :2] + offsets / points * reference[..., 2:] * 0.5


def _sample(level: Tensor, size: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted bilinear samples of one level, [B, h * w, H, D] -> [B, Q, H, D].

    A corner outside the level takes no part, whatever its value and weight; nor does a sample at a
    location that is NaN. On an integer pixel coordinate the derivative is the right-hand one.
    """
    height, width = size
    batch, queries, heads, points, _ = locations.shape
    channels = level.shape[-1]
    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x, y, weights = (torch.where(inside, t, 0.0) for t in (x, y, weights))
    left, top = x.detach().floor(), y.detach().floor()
    right_share, lower_share = x - left, y - top
    pixels = level.transpose(1, 2)
    total = torch.zeros((), dtype=level.dtype, device=level.device)
    for row, row_share in ((top, 1 - lower_share), (top + 1, lower_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            present = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(present, row, 0.0).long() * width + torch.where(present, column, 0.0).long()
            index = index.transpose(1, 2).flatten(2)[..., None].expand(-1, -1, -1, channels)
            corner = pixels.gather(2, index).view(batch, heads, queries, points, channels)
            corner = torch.where(present[..., None], corner.transpose(1, 2), 0.0)
            share = torch.where(present, weights * row_share * column_share, 0.0)
            total = total + (share[..., None] * corner).sum(3)
    return total


def backward(grad_out: Tensor, call: DeformAttn, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    For calls that are recorded; an ordinary one is differentiated by autograd. `deterministic` changes
    nothing: torch's own setting decides.
    """
    wanted = [i for i, need in enumerate(needs) if need]

    def of(*leaves: Tensor) -> Tensor:
        given: list[Any] = list(call)
        for i, leaf in zip(wanted, leaves, strict=True):
            given[i] = leaf
        return forward(DeformAttn._make(given))

    # autograd itself is off inside a registered operator; `torch.func` is not
    differentiate = torch.func.vjp(of, *(call[i] for i in wanted))[1]
    found = iter(differentiate(grad_out))
    return [next(found).contiguous() if need else None for need in needs]
