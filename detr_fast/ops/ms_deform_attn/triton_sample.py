"""Where samples lie and what they weigh: what all Triton kernels of the operator share.

A program serves BLOCK_Q queries of one (image, head), level by level, BLOCK_P points at a time. Names in
capitals are compile-time constants; level_shapes are not, so that images of new level_shapes compile nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_of_queries(queries, HEADS: tl.constexpr, BLOCK_Q: tl.constexpr):
    """This program's image, head, first query, and which of its BLOCK_Q queries exist.

    Heads vary fastest, as in value's rows. What may exceed 2**31 is added to pointers once, in 64 bits; the
    offsets of a block's queries need 32.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(queries, BLOCK_Q)
    image = (program // HEADS // blocks).to(tl.int64)
    first = ((program // HEADS) % blocks).to(tl.int64) * BLOCK_Q
    return image, program % HEADS, first, first + tl.arange(0, BLOCK_Q) < queries


@triton.jit
def level_size(n, levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7, LEVELS: tl.constexpr):
    """Height and width of level n, packed by `triton.pack`: in scalars, or in memory beyond eight levels."""
    if LEVELS > 8:
        packed = tl.load(levels_ptr + n)
    else:
        packed = s0
        if LEVELS > 1:
            packed = tl.where(n == 1, s1, packed)
        if LEVELS > 2:
            packed = tl.where(n == 2, s2, packed)
        if LEVELS > 3:
            packed = tl.where(n == 3, s3, packed)
        if LEVELS > 4:
            packed = tl.where(n == 4, s4, packed)
        if LEVELS > 5:
            packed = tl.where(n == 5, s5, packed)
        if LEVELS > 6:
            packed = tl.where(n == 6, s6, packed)
        if LEVELS > 7:
            packed = tl.where(n == 7, s7, packed)
    return (packed >> 32).to(tl.int32), (packed & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def softmax_terms(
    logits_ptr, row, valid, SAMPLES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
):
    """[BLOCK_Q] largest logit and 1 / sum of exp(logit - largest) of each row of SAMPLES logits."""
    largest = tl.full((BLOCK_Q, BLOCK_K), float("-inf"), tl.float32)
    for first in range(0, SAMPLES, BLOCK_K):
        largest = tl.maximum(largest, _logits(logits_ptr, row, valid, first, SAMPLES, BLOCK_K))
    largest = tl.max(largest, 1)
    total = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for first in range(0, SAMPLES, BLOCK_K):
        total += tl.exp(_logits(logits_ptr, row, valid, first, SAMPLES, BLOCK_K) - largest[:, None])
    return largest, 1.0 / tl.sum(total, 1)


@triton.jit
def _logits(logits_ptr, row, valid, first, SAMPLES: tl.constexpr, BLOCK_K: tl.constexpr):
    k = first + tl.arange(0, BLOCK_K)
    mask = valid[:, None] & (k < SAMPLES)[None, :]
    return tl.load(logits_ptr + row[:, None] * SAMPLES + k[None, :], mask, float("-inf")).to(tl.float32)


@triton.jit
def load_reference(
    references_ptr, query, valid, n, width, height,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
):  # fmt: skip
    """Of a level: pixel coordinate = base + scale * offset, each [BLOCK_Q, 1]; fused calls only.

    Algebraically `reference.sampling_locations`, without its divisions.
    """
    reference_ptr = references_ptr + (query * LEVELS + n) * REFERENCE_DIMS
    base_x = tl.load(reference_ptr, valid, 0).to(tl.float32) * width - 0.5
    base_y = tl.load(reference_ptr + 1, valid, 0).to(tl.float32) * height - 0.5
    if REFERENCE_DIMS == 4:
        scale_x = tl.load(reference_ptr + 2, valid, 0).to(tl.float32) * (0.5 / POINTS) * width
        scale_y = tl.load(reference_ptr + 3, valid, 0).to(tl.float32) * (0.5 / POINTS) * height
    else:
        scale_x = tl.full(base_x.shape, 1.0, tl.float32)
        scale_y = scale_x
    return base_x[:, None], base_y[:, None], scale_x[:, None], scale_y[:, None]


@triton.jit
def split_pixel(x, y, valid, width, height):
    """Of samples at pixel coordinates (x, y): whether they touch the level; left column, top row; shares.

    Coordinates that are NaN or far outside become pixel 0 before they become integers.
    """
    inside = valid & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return inside, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def corners_present(inside, left, top, width, height):
    """Which of the corners lie in the level: upper left and right, lower left and right."""
    has_left = inside & (left >= 0)
    has_right = inside & (left + 1 < width)
    return (
        has_left & (top >= 0),
        has_right & (top >= 0),
        has_left & (top + 1 < height),
        has_right & (top + 1 < height),
    )


@triton.jit
def row_offsets(pixel, present, channel, STRIDE: tl.constexpr, CHANNELS: tl.constexpr):
    """Offsets and mask [.., .., BLOCK_D] of the channels of pixels that are STRIDE elements apart."""
    offset = pixel.to(tl.int64)[:, :, None] * STRIDE + channel[None, None, :]
    mask = present[:, :, None]
    if channel.shape[0] != CHANNELS:
        mask = mask & (channel < CHANNELS)[None, None, :]
    return offset, mask
