"""Device functions that kernels of several operators call."""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def power(base, exponent, SQUARE: tl.constexpr):
    """base^exponent for base >= 0; SQUARE: the exponent is 2."""
    if SQUARE:
        return base * base
    else:
        return tl.exp(exponent * tl.log(tl.maximum(base, TINY)))


@triton.jit
def softmax_statistics(logits_ptr, row, valid, classes, BLOCK_K: tl.constexpr):
    """[BLOCK_Q] largest logit and sum of exp(logit - largest) of each row."""
    k = tl.arange(0, BLOCK_K)
    largest = tl.full(row.shape, float("-inf"), tl.float32)
    for first in range(0, classes, BLOCK_K):
        mask = valid[:, None] & (first + k < classes)[None, :]
        logits = tl.load(logits_ptr + row[:, None] * classes + (first + k)[None, :], mask, float("-inf"))
        largest = tl.maximum(largest, tl.max(logits.to(tl.float32), 1))
    total = tl.zeros(row.shape, tl.float32)
    for first in range(0, classes, BLOCK_K):
        mask = valid[:, None] & (first + k < classes)[None, :]
        logits = tl.load(logits_ptr + row[:, None] * classes + (first + k)[None, :], mask, float("-inf"))
        total += tl.sum(tl.exp(logits.to(tl.float32) - largest[:, None]), 1)
    return largest, total
