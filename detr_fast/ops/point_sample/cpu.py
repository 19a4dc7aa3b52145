"""The compiled CPU backend: every dtype but float64, with float32 arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.point_sample.checks import range_error, result_dtype, rows

_FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # FloatType of csrc
_MAPS = {**_FLOATS, torch.bool: 3, torch.uint8: 3}  # MapType


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve maps of `device` and `dtype`, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    if dtype not in _MAPS:
        return f"computes in float32, too coarse for {dtype}"
    return extension.why_not()


def forward(maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None) -> Tensor:
    """As `reference.forward`."""
    if maps.stride(3) != 1:
        maps = maps.contiguous()
    shape, arguments, _keep = _rows(maps.shape, points, map_index, point_index)
    out = torch.empty(shape[4], shape[1], shape[5], dtype=result_dtype(maps.dtype))
    if out.numel():
        extension.extension().point_sample_fwd(
            shape,
            *arguments,
            maps.data_ptr(),
            _MAPS[maps.dtype],
            maps.stride()[:3],
            out.data_ptr(),
            _FLOATS[out.dtype],
        )
    return out


def backward(
    grad_out: Tensor,
    shape: torch.Size,
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    deterministic: bool = False,
) -> Tensor:
    """As `reference.backward`; each map's rows are summed in their order, by one thread."""
    sizes, arguments, _keep = _rows(shape, points, map_index, point_index)
    grad_out = grad_out.contiguous()
    grad_maps = torch.empty(shape, dtype=grad_out.dtype)
    if grad_maps.numel():
        extension.extension().point_sample_bwd(
            sizes,
            *arguments,
            grad_out.data_ptr(),
            grad_maps.data_ptr(),
            _FLOATS[grad_out.dtype],
        )
    return grad_maps


def _rows(
    shape: torch.Size, points: Tensor, map_index: Tensor | None, point_index: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Tensor | None, ...]]:
    """The kernel's shape and first arguments, and the tensors that these point into."""
    sizes = (*shape, rows(shape, map_index, point_index), points.shape[1])
    points = points.float().contiguous()
    map_index = _in_range("map_index", map_index, shape[0])
    point_index = _in_range("point_index", point_index, points.shape[0])
    tensors = (points, map_index, point_index)
    return sizes, (*map(_pointer, tensors), torch.get_num_threads()), tensors


def _in_range(name: str, index: Tensor | None, count: int) -> Tensor | None:
    """The index as the kernel takes it. Looked at outside torch, which would read a result back."""
    if index is None:
        return None
    index = index.contiguous()
    row = extension.extension().first_out_of_range(index.data_ptr(), len(index), count)
    if row >= 0:
        raise range_error(name, index, count, row)
    return index


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
