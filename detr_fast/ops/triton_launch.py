"""What the Triton backends of all operators do around a launch. Triton is imported by the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_GROUP = 16  # integers of one launch of the table kernel


def launch(kernel: Any, programs: int, num_warps: int, arguments: tuple[Any, ...]) -> None:
    """Runs a kernel on the device and the current stream of its first argument, a tensor."""
    device = arguments[0].device
    # without fusion coordinates are rounded as in the reference; the kernels fuse where it does no harm
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[(programs,)](*arguments, **options)
    else:
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is n or more."""
    return 1 << (n - 1).bit_length()


def device_table(values: Sequence[int], device: torch.device) -> Tensor:
    """[len(values)] int64 on the device, made of launch arguments: no copy, no wait, safe in CUDA graphs."""
    from detr_fast.ops.triton_table import table_kernel

    table = torch.empty(len(values), dtype=torch.int64, device=device)
    padded = [*values, *[0] * (-len(values) % _GROUP)]
    for first in range(0, len(values), _GROUP):
        launch(table_kernel, 1, 1, (table, first, len(values), *padded[first : first + _GROUP]))
    return table
