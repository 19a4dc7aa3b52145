"""The CUDA backend: float32, bfloat16 and float16 values, by the kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import device_and_stream, ready
from detr_fast.ops.ms_deform_attn.ordered import (
    check_countable,
    grad_value_in_order,
    in_input_dtypes,
    sort_by_cell,
    zeros_where,
)

LevelShapes = Sequence[tuple[int, int]]

MOST_LEVELS = 128  # kMaxLevels of csrc


def why_not_levels(too_many: bool) -> str | None:
    """Why the kernels cannot run, or None; `too_many`: whether there are more than `MOST_LEVELS` levels."""
    return f"takes at most {MOST_LEVELS} levels" if too_many else None


class Cuda:
    """The operator through the launchers of `module()`.

    Nothing here waits for the device. A module that executes the kernels on the host serves tensors on
    the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(
        self,
        value: Tensor,
        level_shapes: LevelShapes,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None = None,
    ) -> Tensor:
        """As `reference.forward`."""
        batch, _, heads, channels = value.shape
        out = value.new_empty(batch, coordinates.shape[1], heads * channels)
        call = _call(*_ready(value, coordinates, weights, reference_points), level_shapes)
        self._module().ms_deform_attn_cuda_fwd(*call, out)
        return out

    def backward(
        self,
        grad_out: Tensor,
        value: Tensor,
        level_shapes: LevelShapes,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
        needs: Sequence[bool],
        deterministic: bool = False,
    ) -> list[Tensor | None]:
        """Gradients of value, coordinates, weights and reference points, None where not needed."""
        inputs = (value, coordinates, weights, reference_points)
        if grad_out.numel() == 0 or weights.numel() == 0:
            return zeros_where(needs, inputs)
        value, coordinates, weights, reference_points = _ready(value, coordinates, weights, reference_points)
        grad_out = ready(grad_out, value.dtype)
        grad_value = grad_coordinates = grad_weights = parts = None
        if needs[0] and not deterministic:
            grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        if needs[1]:
            grad_coordinates = coordinates.new_empty(coordinates.shape)
        if needs[2]:
            grad_weights = weights.new_empty(weights.shape)
        if needs[3] and reference_points is not None:
            shape = (*weights.shape[:4], reference_points.shape[-1])
            parts = torch.empty(shape, dtype=torch.float32, device=value.device)
        outputs = (grad_value, grad_coordinates, grad_weights, parts)
        if any(t is not None for t in outputs):
            call = _call(value, coordinates, weights, reference_points, level_shapes)
            self._module().ms_deform_attn_cuda_bwd(*call, grad_out, *outputs)
        if needs[0] and deterministic:
            inputs_in_order = (grad_out, value, coordinates, weights, reference_points)
            grad_value = grad_value_in_order(self._gather, level_shapes, *inputs_in_order)
        gradients = (grad_value, grad_coordinates, grad_weights, None if parts is None else parts.sum(2))
        return in_input_dtypes(gradients, inputs)

    def _gather(
        self,
        level_shapes: LevelShapes,
        grad_value: Tensor,
        grad_out: Tensor,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
    ) -> None:
        kernels, device = self._module(), grad_value.device
        call = _call(grad_value, coordinates, weights, reference_points, level_shapes)
        samples = weights.numel()
        cells = grad_value.shape[0] * grad_value.shape[2] * kernels.ms_deform_attn_cuda_cells(level_shapes)
        check_countable(samples, cells)
        cell = torch.empty(samples, dtype=torch.int32, device=device)
        records = torch.empty(samples, 4, dtype=torch.float32, device=device)
        kernels.ms_deform_attn_cuda_bin(*call, cell, records)
        order, starts = sort_by_cell(cell, cells)
        kernels.ms_deform_attn_cuda_gather(*call, grad_out, starts, order, records, grad_value)


def _ready(
    value: Tensor, coordinates: Tensor, weights: Tensor, reference_points: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As the kernels want them.

    Coordinates and weights stay as they are where both are float32 or both have value's dtype.
    """
    dtype = coordinates.dtype
    if dtype != weights.dtype or dtype not in (torch.float32, value.dtype):
        dtype = torch.float32
    if reference_points is not None:
        reference_points = ready(reference_points, torch.float32)
    return ready(value), ready(coordinates, dtype), ready(weights, dtype), reference_points


def _call(
    value: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    level_shapes: LevelShapes,
) -> tuple[Any, ...]:
    """What every launcher takes first."""
    batch, queries, heads, _, points, _ = coordinates.shape
    dims = 0 if reference_points is None else reference_points.shape[-1]
    shape = (level_shapes, batch, queries, heads, value.shape[-1], points, dims)
    return *shape, value, coordinates, weights, reference_points, *device_and_stream(value)


BACKEND = Cuda(extension.extension)
