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


@triton.jit
def query_block(first_target_ptr, images, queries, BLOCK_Q: tl.constexpr):
    """What a program of BLOCK_Q queries of a (layer, image) works on.

    The layer; where the image's targets begin and end; [BLOCK_Q] queries, whether they exist, and their rows
    in [L, B, Q, ...].
    """
    chunks = tl.cdiv(queries, BLOCK_Q)
    problem = (tl.program_id(0) // chunks).to(tl.int64)
    begin = tl.load(first_target_ptr + problem % images)
    end = tl.load(first_target_ptr + problem % images + 1)
    query = (tl.program_id(0) % chunks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return problem // images, begin, end, query, query < queries, problem * queries + query
