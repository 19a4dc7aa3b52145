"""The CUDA backend: float32, bfloat16 and float16 values, by the kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import cast, device_and_stream, empty, run
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.ops.ms_deform_attn.ordered import check_countable, grad_value_in_order, sort_by_cell

MOST_LEVELS = 128  # kMaxLevels of csrc


def why_not_levels(too_many: bool) -> str | None:
    """Why the kernels cannot run, or None; `too_many`: whether there are more than `MOST_LEVELS` levels."""
    return f"takes at most {MOST_LEVELS} levels" if too_many else None


class Cuda:
    """The operator through the launchers of `module()`.

    Nothing here waits for the device. A module that executes the kernels on the host serves tensors on
    the CPU.
    """

    CHECKS_ARGUMENTS = True

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(self, call: DeformAttn) -> Tensor:
        """As `reference.forward`."""
        batch, _, heads, channels = call.value.shape
        out = empty((batch, call.coordinates.shape[1], heads * channels), call.value)
        run(self._module().ms_deform_attn_cuda_fwd, *_inputs(_with_kernel_dtypes(call)), out)
        return out

    def backward(self, grad_out: Tensor, call: DeformAttn, needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of value, coordinates, weights and reference points, None where not needed."""
        if grad_out.numel() == 0 or call.weights.numel() == 0:
            return call.zeros(needs)
        given = _with_kernel_dtypes(call)
        value, coordinates, weights, *_ = given
        grad_out = cast(grad_out, value.dtype)
        grad_value = grad_coordinates = grad_weights = parts = None
        if needs[0] and not call.in_order:
            grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        if needs[1]:
            grad_coordinates = empty(coordinates.shape, coordinates)
        if needs[2]:
            grad_weights = empty(weights.shape, weights)
        if needs[3] and call.reference_dims:
            parts = call.reference_parts()
        outputs = (grad_value, grad_coordinates, grad_weights, parts)
        if any(t is not None for t in outputs):
            run(self._module().ms_deform_attn_cuda_bwd, *_inputs(given), grad_out, *outputs)
        if needs[0] and call.in_order:
            grad_value = grad_value_in_order(self._gather, grad_out, given)
        return call.in_input_dtypes((grad_value, *outputs[1:3], None if parts is None else parts.sum(2)))

    def _gather(self, grad_out: Tensor, call: DeformAttn, grad_value: Tensor) -> None:
        kernels = self._module()
        inputs = _inputs(call)
        samples = call.weights.numel()
        cells = len(grad_value) * grad_value.shape[2] * kernels.ms_deform_attn_cuda_cells(call.sides)
        check_countable(samples, cells)
        cell = empty((samples,), grad_value, torch.int32)
        records = empty((samples, 4), grad_value, torch.float32)
        kernels.ms_deform_attn_cuda_bin(*inputs, cell, records)
        order, starts = sort_by_cell(cell, cells)
        kernels.ms_deform_attn_cuda_gather(*inputs, grad_out, starts, order, records, grad_value)


def _with_kernel_dtypes(call: DeformAttn) -> DeformAttn:
    """Coordinates and weights as they are where both are float32 or both have value's dtype, else float32."""
    value, coordinates, weights, reference_points, *_ = call
    dtype = coordinates.dtype
    if dtype is not weights.dtype or (dtype is not torch.float32 and dtype is not value.dtype):
        coordinates, weights = cast(coordinates, torch.float32), cast(weights, torch.float32)
    elif reference_points is None or reference_points.dtype is torch.float32:
        return call
    if reference_points is not None:
        reference_points = cast(reference_points, torch.float32)
    return DeformAttn(value, coordinates, weights, reference_points, *call[4:])


def _inputs(call: DeformAttn) -> tuple[Any, ...]:
    """What every launcher takes first."""
    value, coordinates, weights, reference_points, _, sides, points, _ = call
    return sides, points, value, coordinates, weights, reference_points, *device_and_stream(value)


BACKEND = Cuda(extension.extension)
