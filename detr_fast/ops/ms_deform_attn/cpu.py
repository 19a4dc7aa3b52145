"""The compiled CPU backend: float32 and bfloat16 in the kernel, float16 by way of float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import extension

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    if dtype not in (*_KERNEL_DTYPES, torch.float16):
        return f"computes in float32, too coarse for {dtype}"
    return extension.why_not()


def forward(
    value: Tensor,
    sizes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None = None,
) -> Tensor:
    """As `reference.forward`."""
    shape, arguments, _keep = _inputs(value, sizes, coordinates, weights, reference_points)
    dtype = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32
    out = torch.empty(shape[0], shape[1], shape[2] * shape[3], dtype=dtype)  # faster than with a tuple
    if out.numel():
        extension.extension().ms_deform_attn_fwd(shape, *arguments, out.data_ptr())
    return out if dtype == value.dtype else out.to(value.dtype)


def backward(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    needs: Sequence[bool],
    deterministic: bool = False,
) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    The order of the sums is always the same, so `deterministic` changes nothing.
    """
    shape, arguments, _keep = _inputs(value, sizes, coordinates, weights, reference_points)
    kernel_dtype = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32
    if grad_out.dtype != kernel_dtype:
        grad_out = grad_out.to(kernel_dtype)
    grad_out = grad_out.contiguous()
    inputs = (value, coordinates, weights, reference_points)
    gradients = [
        torch.empty(*t.shape, dtype=torch.float32 if t is not value else kernel_dtype)
        if need and t is not None
        else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    if grad_out.numel() == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
    elif any(needs):
        parts = None
        if gradients[3] is not None:
            parts = torch.empty((*shape[:3], shape[4], shape[7]), dtype=torch.float32)
        pointers = [0 if t is None else t.data_ptr() for t in (grad_out, *gradients, parts)]
        extension.extension().ms_deform_attn_bwd(shape, *arguments, *pointers)
    return [
        gradient if gradient is None or t is None or gradient.dtype == t.dtype else gradient.to(t.dtype)
        for gradient, t in zip(gradients, inputs, strict=True)
    ]


def _inputs(
    value: Tensor,
    sizes: Sequence[tuple[int, int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> tuple[list[int], tuple[int | bool, ...], tuple[Tensor | None, ...]]:
    """The kernel's shape and arguments, and the tensors that these point into."""
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = coordinates.shape
    reference_dims = 0 if reference_points is None else reference_points.shape[-1]
    shape = [batch, queries, heads, channels, levels, points, pixels, reference_dims]
    for size in sizes:
        shape += size
    bf16 = value.dtype == torch.bfloat16
    value = value.contiguous() if bf16 else value.float().contiguous()
    coordinates = coordinates.float().contiguous()
    weights = weights.float().contiguous()
    references = 0
    if reference_points is not None:
        reference_points = reference_points.float().contiguous()
        references = reference_points.data_ptr()
    pointers = (value.data_ptr(), coordinates.data_ptr(), weights.data_ptr(), references)
    threads = torch.get_num_threads()
    return shape, (bf16, *pointers, threads), (value, coordinates, weights, reference_points)
