"""What kernels take of a tensor: memory that holds what the tensor shows.

Every CPU and CUDA call goes through `run`, and tensors of Triton calls through `ready`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.extension import NotReady

ALIGNMENT = 16  # bytes that a kernel loads and stores at once


class NoMemory(ValueError):
    """A tensor's storage is empty though the tensor is not."""


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the extension returns; tensors go in as `ready` makes them.

    The extension looks at the memory anyway, in a tenth of the time, so `ready` waits until it objects.
    """
    try:
        return function(*arguments)
    except NotReady:
        return function(*[ready(value) if isinstance(value, Tensor) else value for value in arguments])


def ready(tensor: Tensor, dtype: torch.dtype | None = None, *, contiguous: bool = True) -> Tensor:
    """The tensor as kernels read it: the tensor itself where its memory is so already, else a copy.

    Args:
        tensor: any strides; negative and conjugate bits and zero tensors without memory are resolved.
        dtype: converts to this one; None leaves it alone.
        contiguous: whether elements must lie side by side and begin at a multiple of 16 bytes.

    Raises:
        NoMemory: the tensor's storage was freed.
    """
    if dtype is not None and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if contiguous:
        tensor = tensor.contiguous()
    if tensor.is_neg():  # conjugate bits are of complex numbers, which no operator takes
        tensor = tensor.resolve_neg()
    address = tensor.data_ptr()
    if address == 0 and tensor.numel():
        if not tensor._is_zerotensor():
            raise NoMemory(f"expected a tensor with memory; the storage of {list(tensor.shape)} is empty")
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if address % ALIGNMENT and contiguous:
        return tensor.clone()
    return tensor


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)` of floats, in a third of the time where there is nothing to do."""
    if tensor.dtype is dtype:
        return tensor
    if not tensor.is_floating_point():
        raise TypeError(f"expected floating point; got {tensor.dtype}")
    return tensor.to(dtype)


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory beside `like` that the caller fills, so deterministic algorithms need not fill it before.

    The shape has at least one dimension.
    """
    if torch.are_deterministic_algorithms_enabled():
        return _never_filled(shape, dtype or like.dtype, like.device)
    # with a tuple it takes half as long again, with a dtype a quarter
    if dtype is None or dtype is like.dtype:
        return like.new_empty(*shape)
    return like.new_empty(*shape, dtype=dtype)


def _never_filled(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    storage = torch.UntypedStorage(math.prod(shape) * dtype.itemsize, device=device)
    return torch.empty(0, dtype=dtype, device=device).set_(storage).view(torch.Size(shape))


def is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


def device_and_stream(tensor: Tensor) -> tuple[int, int]:
    """The device's index and its current stream; zeros for a tensor on the CPU, where tests run kernels."""
    if not tensor.is_cuda:
        return 0, 0
    device = tensor.device.index
    # torch.cuda.current_stream(device).cuda_stream without the object in between
    return device, torch._C._cuda_getCurrentRawStream(device)
