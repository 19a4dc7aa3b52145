"""What the Triton backends of all operators do around a launch. Triton is imported by the first one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_GROUP = 32  # integers of one launch of the table kernel
_MOST_TABLES = 16  # kept


def launch(kernel: Any, programs: int, num_warps: int, arguments: tuple[Any, ...]) -> None:
    """Runs a kernel on the device and the current stream of its first argument, a tensor.

    Raises:
        RuntimeError: a CUDA graph is being captured, which allows no module to be loaded, and the kernel was
            never launched before with arguments of these kinds.
    """
    device = arguments[0].device
    # without fusion coordinates are rounded as in the reference; the kernels fuse where it does no harm
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    try:
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            kernel[(programs,)](*arguments, **options)
        else:
            with torch.cuda.device(device):
                kernel[(programs,)](*arguments, **options)
    except Exception as error:
        if not _is_capturing(device):
            raise
        raise RuntimeError(
            f"Triton could not launch {kernel.__name__} while a CUDA graph is captured, which allows no "
            "module to be loaded: call detr_fast.ops.warm_up with the model's sizes before, or make the same "
            "call once, as torch.cuda.make_graphed_callables does"
        ) from error


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


def target_starts(num_targets: Sequence[int], device: torch.device) -> Tensor:
    """[B + 1] int64: where each image's targets begin, and the end.

    Every operator of a step asks for the same ones, so the latest are kept, for the stream that filled them.
    None passes into a CUDA graph or out of it: its memory is the graph's own, and replays outlast ours.
    """
    values = (0, *accumulate(num_targets))
    if _is_capturing(device):
        return device_table(values, device)
    stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
    key = (values, device, stream)
    table = _tables.get(key)
    if table is None:
        table = device_table(values, device)
        if len(_tables) >= _MOST_TABLES:
            _tables.clear()
        _tables[key] = table
    return table


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_tables: dict[tuple[tuple[int, ...], torch.device, int], Tensor] = {}
