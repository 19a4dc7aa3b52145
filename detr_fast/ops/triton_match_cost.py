"""What the Triton kernels of the matching costs share: costs that are not finite."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.triton_launch import launch

_BLOCK = 1024
HUGE = tl.constexpr(3.4028234663852886e38)


@triton.jit(do_not_specialize=("images", "queries", "targets", "chunks"))
def repair_kernel(
    costs_ptr,  # [L, sumT, Q] float32
    non_finite_ptr,  # [L * B * chunks] int32: whether a chunk has a cost that is not finite
    first_target_ptr,  # [B + 1] int64
    images, queries, targets, chunks, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a (layer, image): replaces costs that are not finite, where there are any."""
    problem = tl.program_id(0).to(tl.int64)
    layer = problem // images
    begin = tl.load(first_target_ptr + problem % images)
    end = tl.load(first_target_ptr + problem % images + 1)
    lanes = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.int32)
    for chunk in range(0, chunks, BLOCK):
        found += tl.load(non_finite_ptr + problem * chunks + chunk + lanes, chunk + lanes < chunks, 0)
    if tl.max(found, 0) > 0:
        block_ptr = costs_ptr + (layer * targets + begin) * queries
        count = (end - begin) * queries
        low = tl.full((BLOCK,), float("inf"), tl.float32)
        high = tl.full((BLOCK,), float("-inf"), tl.float32)
        for first in range(0, count, BLOCK):
            cost = tl.load(block_ptr + first + lanes, first + lanes < count, float("nan"))
            finite = (cost - cost) == 0
            low = tl.where(finite, tl.minimum(low, cost), low)
            high = tl.where(finite, tl.maximum(high, cost), high)
        lowest = tl.min(low, 0).to(tl.float64)
        highest = tl.max(high, 0).to(tl.float64)
        # above T * high - (T - 1) * low, by a margin that rounding cannot swallow
        margin = tl.maximum(tl.abs(highest), 1.0)
        penalty = tl.minimum(highest + (end - begin) * (highest - lowest) + margin, HUGE)
        penalty = tl.where(lowest <= highest, penalty, 0.0).to(tl.float32)
        for first in range(0, count, BLOCK):
            mask = first + lanes < count
            cost = tl.load(block_ptr + first + lanes, mask, 0.0)
            tl.store(block_ptr + first + lanes, penalty, mask & ((cost - cost) != 0))


def repair(costs: Tensor, non_finite: Tensor, first_target: Tensor) -> None:
    """Replaces costs that are not finite, as the public functions promise, where any chunk has one.

    Args:
        costs: [..., sumT, Q], changed in place.
        non_finite: [L * B * chunks], whether a chunk of queries has one.
        first_target: [B + 1], where each image's targets begin.
    """
    images, (targets, queries) = first_target.numel() - 1, costs.shape[-2:]
    problems = costs.numel() // (targets * queries) * images
    numbers = (images, queries, targets, non_finite.numel() // problems)
    launch(repair_kernel, problems, 4, (costs, non_finite, first_target, *numbers, _BLOCK))
