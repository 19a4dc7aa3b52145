"""The CUDA backend: all problems of a call in one launch (csrc/linear_assignment/cuda.h)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import device_and_stream, empty, run

MOST_ROWS = 2048  # of a problem, min(T, Q)
_DEFAULT_SHARED_BYTES = 48 * 1024  # that every device offers a block


def why_not_rows(more_than_most: bool) -> str | None:
    """Why GPU backends leave a problem to the host: one block solves it in O(rows^3)."""
    if not more_than_most:
        return None
    return f"solves problems with min(T, Q) <= {MOST_ROWS}; beyond it a block would hold the GPU for seconds"


@functools.cache
def _most_shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _DEFAULT_SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _DEFAULT_SHARED_BYTES))


class Cuda:
    """The operator through the launcher of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU. `shared_bytes` caps the
    shared memory of a block; None: as much as the device has.
    """

    def __init__(self, module: Callable[[], ModuleType], shared_bytes: int | None = None) -> None:
        self._module = module
        self._shared_bytes = shared_bytes

    def solve(
        self, costs: Tensor, num_targets: Sequence[int], check: bool, by_auction: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """costs [..., sumT, Q] float32 or float64 -> query [..., sumT] int64, status [..., B] int32 or None.

        `check` raises nothing, for that would wait for the device: an infeasible problem has -1 everywhere.
        `by_auction` has an auction solve what it can (csrc/linear_assignment/cuda_auction.h).
        """
        shape = costs.shape
        query = empty(shape[:-1], costs, torch.int64)
        status = None if check else empty((*shape[:-2], len(num_targets)), costs, torch.int32)
        if len(shape) != 3:
            costs = costs.flatten(0, -3) if len(shape) > 3 else costs[None]
        layers, targets, queries = costs.shape
        if max(targets, queries) >= 2**31:
            raise ValueError(f"costs: expected sumT and Q below 2**31; got {list(shape)}")
        shared_bytes = self._shared_bytes
        if shared_bytes is None:
            shared_bytes = _most_shared_bytes(costs.device)
        kernels = self._module()
        workspace_bytes = kernels.linear_assignment_cuda_workspace(
            num_targets, layers, queries, costs.dtype is torch.float64, shared_bytes
        )
        workspace = empty((workspace_bytes,), costs, torch.uint8)
        queue = device_and_stream(costs)
        options = (by_auction, shared_bytes, workspace)
        run(kernels.linear_assignment_cuda, num_targets, costs, query, status, *options, *queue)
        return query, status


BACKEND = Cuda(extension.extension)
