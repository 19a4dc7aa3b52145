"""The compiled CPU backend: float32 and bfloat16 in the kernel, float16 by way of float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import ready


def forward(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None = None,
) -> Tensor:
    """As `reference.forward`."""
    batch, _, heads, channels = value.shape
    dtype = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32
    out = torch.empty(batch, coordinates.shape[1], heads * channels, dtype=dtype)  # faster than with a tuple
    inputs = _inputs(value, level_shapes, coordinates, weights, reference_points)
    extension.extension().ms_deform_attn_cpu_fwd(*inputs, out)
    return out if dtype == value.dtype else out.to(value.dtype)


def backward(
    grad_out: Tensor,
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    needs: Sequence[bool],
    deterministic: bool = False,
) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    The order of the sums is always the same, so `deterministic` changes nothing.
    """
    dtype = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32
    inputs = (value, coordinates, weights, reference_points)
    gradients = [
        torch.empty(*t.shape, dtype=torch.float32 if t is not value else dtype)
        if need and t is not None
        else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    parts = None
    if gradients[3] is not None:
        parts = torch.empty((*weights.shape[:4], gradients[3].shape[-1]), dtype=torch.float32)
    arguments = _inputs(value, level_shapes, coordinates, weights, reference_points)
    grad_out = ready(grad_out, dtype)
    extension.extension().ms_deform_attn_cpu_bwd(*arguments, grad_out, *gradients, parts)
    return [
        gradient if gradient is None or t is None or gradient.dtype == t.dtype else gradient.to(t.dtype)
        for gradient, t in zip(gradients, inputs, strict=True)
    ]


def _inputs(
    value: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> tuple[Any, ...]:
    """What every function of the extension takes first."""
    batch, queries, heads, _, points, _ = coordinates.shape
    value = ready(value) if value.dtype == torch.bfloat16 else ready(value, torch.float32)
    reference_dims = 0
    if reference_points is not None:
        reference_dims = reference_points.shape[-1]
        reference_points = ready(reference_points, torch.float32)
    return (
        level_shapes,
        batch,
        queries,
        heads,
        value.shape[-1],
        points,
        reference_dims,
        value,
        ready(coordinates, torch.float32),
        ready(weights, torch.float32),
        reference_points,
        torch.get_num_threads(),
    )
