"""Where samples lie and what they weigh: what all Triton kernels of the operator share.

A program serves BLOCK_Q queries of one (image, head), level by level, BLOCK_P points at a time. Names in
capitals are compile-time constants; level_shapes are not, so that images of new level_shapes compile nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_rows(
    coordinates_ptr, weights_ptr, references_ptr, queries,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, SAMPLES: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """This program's image, head and first row, which of its BLOCK_Q queries exist, and the pointers there.

    A row is one (image, query, head); heads vary fastest, as in value's rows, so a block's rows are HEADS
    apart. What may exceed 2**31 is added to pointers once, in 64 bits; the offsets of a block need 32.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(queries, BLOCK_Q)
    image = (program // HEADS // blocks).to(tl.int64)
    head = program % HEADS
    first_query = ((program // HEADS) % blocks).to(tl.int64) * BLOCK_Q
    token = image * queries + first_query
    row = token * HEADS + head
    valid_query = first_query + tl.arange(0, BLOCK_Q) < queries
    coordinates_ptr += row * (2 * SAMPLES)
    weights_ptr += row * SAMPLES
    references_ptr += token * (LEVELS * REFERENCE_DIMS)
    return image, head, row, valid_query, coordinates_ptr, weights_ptr, references_ptr


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
def points_of(n, LEVELS: tl.constexpr, POINTS: tl.constexpr, RAGGED: tl.constexpr):
    """The first sample of level n in a row, and how many points it has.

    RAGGED holds 32 bits a level where their numbers of points differ: the first sample of each, then the end.
    """
    if RAGGED:
        first = n * 0
        end = first
        for k in tl.static_range(LEVELS):
            first = tl.where(n == k, (RAGGED >> (32 * k)) & 0x7FFFFFFF, first)
            end = tl.where(n == k, (RAGGED >> (32 * k + 32)) & 0x7FFFFFFF, end)
        count = end - first
    else:
        first = n * POINTS
        count = POINTS
    return first, count


@triton.jit
def softmax_terms(
    logits_ptr, valid_query,
    HEADS: tl.constexpr, SAMPLES: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_Q] largest logit and 1 / sum of exp(logit - largest) of each row of logits; fused calls only."""
    if REFERENCE_DIMS == 0:
        largest = tl.zeros((BLOCK_Q,), tl.float32)
        scale = largest
    else:
        top = tl.full((BLOCK_Q, BLOCK_K), float("-inf"), tl.float32)
        for first in range(0, SAMPLES, BLOCK_K):
            top = tl.maximum(top, _logits(logits_ptr, valid_query, first, HEADS, SAMPLES, BLOCK_Q, BLOCK_K))
        largest = tl.max(top, 1)
        total = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        for first in range(0, SAMPLES, BLOCK_K):
            logits = _logits(logits_ptr, valid_query, first, HEADS, SAMPLES, BLOCK_Q, BLOCK_K)
            total += tl.exp(logits - largest[:, None])
        scale = 1.0 / tl.sum(total, 1)
    return largest, scale


@triton.jit
def _logits(
    logits_ptr, valid_query, first,
    HEADS: tl.constexpr, SAMPLES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    sample, valid = block_samples(valid_query, 0, first, SAMPLES, HEADS, SAMPLES, BLOCK_Q, BLOCK_K)
    return tl.load(logits_ptr + sample, valid, float("-inf")).to(tl.float32)


@triton.jit
def block_samples(
    valid_query, begin, first, count,
    HEADS: tl.constexpr, SAMPLES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_Q, BLOCK_K]: of the `count` samples of each row from `begin` on those from number `first` on.

    Returns their offsets, and which exist.
    """
    k = first + tl.arange(0, BLOCK_K)
    row = tl.arange(0, BLOCK_Q) * HEADS
    return row[:, None] * SAMPLES + (begin + k)[None, :], valid_query[:, None] & (k < count)[None, :]


@triton.jit
def level_scale(
    references_ptr, valid_query, n, width, height, points,
    LEVELS: tl.constexpr, REFERENCE_DIMS: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Of a level: pixel coordinate = base + scale * coordinate, [BLOCK_Q, 1], or [1, 1] where not fused.

    Algebraically `reference.sampling_locations`, without its divisions.
    """
    if REFERENCE_DIMS == 0:
        base_x = tl.full((1,), -0.5, tl.float32)
        base_y = base_x
        scale_x = tl.full((1,), 1.0, tl.float32) * width
        scale_y = tl.full((1,), 1.0, tl.float32) * height
    else:
        reference_ptr = references_ptr + (tl.arange(0, BLOCK_Q) * LEVELS + n) * REFERENCE_DIMS
        base_x = tl.load(reference_ptr, valid_query, 0).to(tl.float32) * width - 0.5
        base_y = tl.load(reference_ptr + 1, valid_query, 0).to(tl.float32) * height - 0.5
        scale_x = tl.full(base_x.shape, 1.0, tl.float32)
        scale_y = scale_x
        if REFERENCE_DIMS == 4:
            half = 0.5 / points
            scale_x = tl.load(reference_ptr + 2, valid_query, 0).to(tl.float32) * half * width
            scale_y = tl.load(reference_ptr + 3, valid_query, 0).to(tl.float32) * half * height
    return base_x[:, None], base_y[:, None], scale_x[:, None], scale_y[:, None]


@triton.jit
def load_samples(
    coordinates_ptr, weights_ptr, sample, valid, base_x, base_y, scale_x, scale_y, largest, scale,
    width, height, REFERENCE_DIMS: tl.constexpr,
):  # fmt: skip
    """Samples of a level: the one place that tells where they lie and what they weigh.

    Returns their weights, whether they touch the level, left column, top row, and the shares of the right
    column and the lower row. Coordinates that are NaN or far outside become pixel 0 before they become
    integers.
    """
    x = tl.load(coordinates_ptr + 2 * sample, valid, 0).to(tl.float32)
    y = tl.load(coordinates_ptr + 2 * sample + 1, valid, 0).to(tl.float32)
    weight = tl.load(weights_ptr + sample, valid, 0).to(tl.float32)
    x = x * scale_x + base_x
    y = y * scale_y + base_y
    if REFERENCE_DIMS:
        weight = tl.exp(weight - largest[:, None]) * scale[:, None]
    inside = valid & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return weight, inside, left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def corners_present(inside, left, top, width, height):
    """Which of a sample's corners lie in the level: upper left and right, lower left and right."""
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
