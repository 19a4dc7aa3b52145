"""The CUDA backend: float32, bfloat16 and float16 values, by the kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.gpu import FLOAT_TYPES, device_and_stream, is_aligned, ready

LevelSizes = Sequence[tuple[int, int]]

_SORTED_AT_ONCE = 2**24  # samples: working memory of a deterministic backward stays below 0.8 GB


class Cuda:
    """The operator through the launchers of `module()`.

    Nothing here waits for the device. A module that executes the kernels on the host serves tensors on
    the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
        if device.type != "cuda":
            return f"runs on a CUDA device, not on {device.type}"
        if dtype not in FLOAT_TYPES:
            return f"computes in float32, too coarse for {dtype}"
        return extension.why_not_cuda(device)

    def forward(
        self,
        value: Tensor,
        sizes: LevelSizes,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None = None,
    ) -> Tensor:
        """As `reference.forward`."""
        batch, _, heads, channels = value.shape
        out = value.new_empty(batch, coordinates.shape[1], heads * channels)
        if out.numel() == 0 or weights.numel() == 0:
            return out.zero_()
        call, *_keep = _call(value, sizes, coordinates, weights, reference_points)
        self._module().ms_deform_attn_cuda_fwd(call, out.data_ptr())
        return out

    def backward(
        self,
        grad_out: Tensor,
        value: Tensor,
        sizes: LevelSizes,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
        needs: Sequence[bool],
        deterministic: bool = False,
    ) -> list[Tensor | None]:
        """Gradients of value, coordinates, weights and reference points, None where not needed."""
        inputs = (value, coordinates, weights, reference_points)
        if grad_out.numel() == 0 or weights.numel() == 0:
            return [
                t.new_zeros(t.shape) if need and t is not None else None
                for t, need in zip(inputs, needs, strict=True)
            ]
        call, value, coordinates, weights, reference_points = _call(
            value, sizes, coordinates, weights, reference_points
        )
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
            pointers = [0 if t is None else t.data_ptr() for t in outputs]
            self._module().ms_deform_attn_cuda_bwd(call, grad_out.data_ptr(), *pointers)
        if needs[0] and deterministic:
            grad_value = self._grad_value_in_order(
                grad_out, value, sizes, coordinates, weights, reference_points
            )
        gradients = (grad_value, grad_coordinates, grad_weights, None if parts is None else parts.sum(2))
        return [
            gradient if gradient is None or t is None or gradient.dtype == t.dtype else gradient.to(t.dtype)
            for gradient, t in zip(gradients, inputs, strict=True)
        ]

    def _grad_value_in_order(
        self,
        grad_out: Tensor,
        value: Tensor,
        sizes: LevelSizes,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
    ) -> Tensor:
        """The gradient of value, summed in one order: the samples sorted by the cell they fall into."""
        grad_value = torch.empty_like(value)
        images = max(1, _SORTED_AT_ONCE // weights[0].numel())
        for first in range(0, len(value), images):
            some = slice(first, first + images)
            references = None if reference_points is None else reference_points[some]
            call, *_keep = _call(value[some], sizes, coordinates[some], weights[some], references)
            into = grad_value[some]
            aligned = into if is_aligned(into) else torch.empty_like(into)
            self._gather(call, ready(grad_out[some]), weights[some].numel(), aligned)
            if aligned is not into:
                into.copy_(aligned)
        return grad_value

    def _gather(self, call: list[int], grad_out: Tensor, samples: int, grad_value: Tensor) -> None:
        kernels, device = self._module(), grad_value.device
        batch, _, heads, _ = grad_value.shape
        cells = batch * heads * kernels.ms_deform_attn_cuda_cells(call)
        if max(samples, cells + 1) >= 2**31:
            raise ValueError(
                f"deterministic: expected fewer than 2**31 samples and cells an image; got Q * H * N * P = "
                f"{samples}, and {cells} cells, H * sum of (height + 1) * (width + 1)"
            )
        cell = torch.empty(samples, dtype=torch.int32, device=device)
        records = torch.empty(samples, 4, dtype=torch.float32, device=device)
        kernels.ms_deform_attn_cuda_bin(call, cell.data_ptr(), records.data_ptr())
        cell, order = torch.sort(cell, stable=True)
        numbers = torch.arange(cells + 1, dtype=torch.int32, device=device)
        starts = torch.searchsorted(cell, numbers, out_int32=True)
        pointers = [t.data_ptr() for t in (grad_out, starts, order, records, grad_value)]
        kernels.ms_deform_attn_cuda_gather(call, *pointers)


def _call(
    value: Tensor,
    sizes: LevelSizes,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor | None]:
    """The launchers' first argument (csrc/bind_gpu.h), and the tensors that it points to.

    Coordinates and weights stay as they are where both are float32 or both have value's dtype.
    """
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = coordinates.shape
    dtype = coordinates.dtype
    if dtype != weights.dtype or dtype not in (torch.float32, value.dtype):
        dtype = torch.float32
    value, coordinates, weights = ready(value), ready(coordinates, dtype), ready(weights, dtype)
    references = dims = 0
    if reference_points is not None:
        reference_points = ready(reference_points, torch.float32)
        references, dims = reference_points.data_ptr(), reference_points.shape[-1]
    call = [*device_and_stream(value), FLOAT_TYPES[value.dtype], FLOAT_TYPES[dtype]]
    call += (value.data_ptr(), coordinates.data_ptr(), weights.data_ptr(), references)
    call += (batch, queries, heads, channels, levels, points, pixels, dims)
    for size in sizes:
        call += size
    return call, value, coordinates, weights, reference_points


BACKEND = Cuda(extension.extension)
