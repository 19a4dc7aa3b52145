"""What the GPU backends of all operators do before a launch."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/common/float_types.h
ALIGNMENT = 16  # bytes that a kernel loads and stores at once


def ready(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous and aligned, as the kernels want it; the tensor itself where it is so already."""
    if dtype is not None and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    tensor = tensor.contiguous()
    return tensor if is_aligned(tensor) else tensor.clone()


def is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


def device_and_stream(tensor: Tensor) -> tuple[int, int]:
    """The device's index and its current stream; zeros for a tensor on the CPU, where tests run kernels."""
    if not tensor.is_cuda:
        return 0, 0
    device = tensor.device.index
    # torch.cuda.current_stream(device).cuda_stream without the object in between
    return device, torch._C._cuda_getCurrentRawStream(device)
