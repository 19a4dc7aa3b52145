"""The Triton kernels of forward and backward. See `triton.py` for what calls them.

Products and sums are written as `tl.fma` where they may be contracted; the kernels are launched with
`enable_fp_fusion=False`, so that coordinates are rounded as in `reference.py` and fall on the same side
of an integer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.ms_deform_attn.triton_sample import (
    block_samples,
    corners_present,
    find_rows,
    level_scale,
    level_size,
    load_samples,
    points_of,
    row_offsets,
    softmax_terms,
)

VARYING = ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "queries", "pixels")


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    out_ptr,  # [B, Q, H, D]
    value_ptr,  # [B, S, H, D]
    coordinates_ptr,  # [B, Q, H, SAMPLES, 2]
    weights_ptr,  # [B, Q, H, SAMPLES]
    references_ptr,  # [B, Q, N, REFERENCE_DIMS]
    levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7,
    queries,
    pixels,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    RAGGED: tl.constexpr, SAMPLES: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, head, first_row, valid_query, coordinates_ptr, weights_ptr, references_ptr = find_rows(
        coordinates_ptr, weights_ptr, references_ptr, queries,
        HEADS, LEVELS, SAMPLES, REFERENCE_DIMS, BLOCK_Q,
    )  # fmt: skip
    out_ptr += first_row * CHANNELS
    channel = tl.arange(0, BLOCK_D)
    value_ptr += (image * pixels * HEADS + head) * CHANNELS
    largest, scale = softmax_terms(weights_ptr, valid_query, HEADS, SAMPLES, REFERENCE_DIMS, BLOCK_Q, BLOCK_K)
    total = tl.zeros((BLOCK_Q, BLOCK_P, BLOCK_D), tl.float32)
    start = 0
    for n in range(0, LEVELS):
        height, width = level_size(n, levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7, LEVELS)
        begin, count = points_of(n, LEVELS, POINTS, RAGGED)
        base_x, base_y, scale_x, scale_y = level_scale(
            references_ptr, valid_query, n, width, height, count, LEVELS, REFERENCE_DIMS, BLOCK_Q
        )
        for first in range(0, count, BLOCK_P):
            sample, valid = block_samples(valid_query, begin, first, count, HEADS, SAMPLES, BLOCK_Q, BLOCK_P)
            weight, inside, left, top, right, lower = load_samples(
                coordinates_ptr, weights_ptr, sample, valid, base_x, base_y, scale_x, scale_y,
                largest, scale, width, height, REFERENCE_DIMS,
            )  # fmt: skip
            has_00, has_01, has_10, has_11 = corners_present(inside, left, top, width, height)
            pixel = start + top * width + left
            upper_weight = weight * (1 - lower)
            lower_weight = weight * lower
            total = _add_corner(
                total, value_ptr, pixel, has_00, upper_weight * (1 - right), channel, HEADS, CHANNELS
            )
            total = _add_corner(
                total, value_ptr, pixel + 1, has_01, upper_weight * right, channel, HEADS, CHANNELS
            )
            total = _add_corner(
                total, value_ptr, pixel + width, has_10, lower_weight * (1 - right), channel, HEADS, CHANNELS
            )
            total = _add_corner(
                total, value_ptr, pixel + width + 1, has_11, lower_weight * right, channel, HEADS, CHANNELS
            )
        start += height * width
    out = tl.sum(total, 1)
    row = tl.arange(0, BLOCK_Q) * HEADS
    mask = valid_query[:, None] & (channel < CHANNELS)[None, :]
    tl.store(out_ptr + row[:, None] * CHANNELS + channel[None, :], out.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _add_corner(
    total, value_ptr, pixel, present, share, channel, HEADS: tl.constexpr, CHANNELS: tl.constexpr
):
    """A corner outside the level takes no part, whatever its value and weight."""
    offset, mask = row_offsets(pixel, present, channel, HEADS * CHANNELS, CHANNELS)
    corner = tl.load(value_ptr + offset, mask, 0).to(tl.float32)
    return tl.fma(corner, tl.where(present, share, 0.0)[:, :, None], total)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    grad_out_ptr,  # [B, Q, H, D]
    value_ptr,  # [B, S, H, D]
    grad_value_ptr,  # [B, S, H, D] float32, zeroed
    grad_coordinates_ptr,  # [B, Q, H, SAMPLES, 2]
    grad_weights_ptr,  # [B, Q, H, SAMPLES]
    by_weight_ptr,  # [B, Q, H, SAMPLES] float32: gradients of the softmax's results, on their way
    reference_parts_ptr,  # [B, Q, H, N, REFERENCE_DIMS] float32, to be summed over H
    coordinates_ptr,  # [B, Q, H, SAMPLES, 2]
    weights_ptr,  # [B, Q, H, SAMPLES]
    references_ptr,  # [B, Q, N, REFERENCE_DIMS]
    levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7,
    queries,
    pixels,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    RAGGED: tl.constexpr, SAMPLES: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
    NEED_VALUE: tl.constexpr, NEED_COORDINATES: tl.constexpr, NEED_WEIGHTS: tl.constexpr,
    NEED_REFERENCES: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # the parentheses are for Triton 3.2
    NEED_DOT: tl.constexpr = NEED_COORDINATES or (NEED_WEIGHTS or NEED_REFERENCES)
    image, head, first_row, valid_query, coordinates_ptr, weights_ptr, references_ptr = find_rows(
        coordinates_ptr, weights_ptr, references_ptr, queries,
        HEADS, LEVELS, SAMPLES, REFERENCE_DIMS, BLOCK_Q,
    )  # fmt: skip
    row = tl.arange(0, BLOCK_Q) * HEADS
    grad_out_ptr += first_row * CHANNELS
    grad_coordinates_ptr += first_row * (2 * SAMPLES)
    grad_weights_ptr += first_row * SAMPLES
    by_weight_ptr += first_row * SAMPLES
    reference_parts_ptr += first_row * (LEVELS * REFERENCE_DIMS)
    channel = tl.arange(0, BLOCK_D)
    first_value = (image * pixels * HEADS + head) * CHANNELS
    value_ptr += first_value
    grad_value_ptr += first_value
    largest, scale = softmax_terms(weights_ptr, valid_query, HEADS, SAMPLES, REFERENCE_DIMS, BLOCK_Q, BLOCK_K)
    mask = valid_query[:, None] & (channel < CHANNELS)[None, :]
    grad_out = tl.load(grad_out_ptr + row[:, None] * CHANNELS + channel[None, :], mask, 0).to(tl.float32)
    grad_out = grad_out[:, None, :]
    mean = tl.zeros((BLOCK_Q,), tl.float32)
    start = 0
    for n in range(0, LEVELS):
        height, width = level_size(n, levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7, LEVELS)
        begin, count = points_of(n, LEVELS, POINTS, RAGGED)
        base_x, base_y, scale_x, scale_y = level_scale(
            references_ptr, valid_query, n, width, height, count, LEVELS, REFERENCE_DIMS, BLOCK_Q
        )
        part_x = tl.zeros((BLOCK_Q,), tl.float32)
        part_y = tl.zeros((BLOCK_Q,), tl.float32)
        part_width = tl.zeros((BLOCK_Q,), tl.float32)
        part_height = tl.zeros((BLOCK_Q,), tl.float32)
        for first in range(0, count, BLOCK_P):
            sample, valid = block_samples(valid_query, begin, first, count, HEADS, SAMPLES, BLOCK_Q, BLOCK_P)
            weight, inside, left, top, right, lower = load_samples(
                coordinates_ptr, weights_ptr, sample, valid, base_x, base_y, scale_x, scale_y,
                largest, scale, width, height, REFERENCE_DIMS,
            )  # fmt: skip
            has_00, has_01, has_10, has_11 = corners_present(inside, left, top, width, height)
            pixel = start + top * width + left
            upper_weight = weight * (1 - lower)
            lower_weight = weight * lower
            dot_00 = _differentiate_corner(
                value_ptr, grad_value_ptr, grad_out, pixel, has_00, upper_weight * (1 - right),
                channel, HEADS, CHANNELS, NEED_VALUE, NEED_DOT,
            )  # fmt: skip
            dot_01 = _differentiate_corner(
                value_ptr, grad_value_ptr, grad_out, pixel + 1, has_01, upper_weight * right,
                channel, HEADS, CHANNELS, NEED_VALUE, NEED_DOT,
            )  # fmt: skip
            dot_10 = _differentiate_corner(
                value_ptr, grad_value_ptr, grad_out, pixel + width, has_10, lower_weight * (1 - right),
                channel, HEADS, CHANNELS, NEED_VALUE, NEED_DOT,
            )  # fmt: skip
            dot_11 = _differentiate_corner(
                value_ptr, grad_value_ptr, grad_out, pixel + width + 1, has_11, lower_weight * right,
                channel, HEADS, CHANNELS, NEED_VALUE, NEED_DOT,
            )  # fmt: skip
            if NEED_WEIGHTS:
                upper = tl.fma(right, dot_01, (1 - right) * dot_00)
                by_weight = tl.fma(lower, tl.fma(right, dot_11, (1 - right) * dot_10), (1 - lower) * upper)
                if REFERENCE_DIMS:
                    mean += tl.sum(tl.where(valid, weight * by_weight, 0.0), 1)
                    tl.store(by_weight_ptr + sample, by_weight, valid)
                else:
                    by_weight = by_weight.to(grad_weights_ptr.dtype.element_ty)
                    tl.store(grad_weights_ptr + sample, by_weight, valid)
            if NEED_COORDINATES or NEED_REFERENCES:
                # by pixel coordinates; a weight may be infinite where the sample is outside
                by_x = weight * tl.fma(lower, dot_11 - dot_10, (1 - lower) * (dot_01 - dot_00))
                by_y = weight * tl.fma(right, dot_11 - dot_01, (1 - right) * (dot_10 - dot_00))
                by_x = tl.where(inside, by_x, 0.0)
                by_y = tl.where(inside, by_y, 0.0)
            if NEED_COORDINATES:
                grad_x = (by_x * scale_x).to(grad_coordinates_ptr.dtype.element_ty)
                grad_y = (by_y * scale_y).to(grad_coordinates_ptr.dtype.element_ty)
                tl.store(grad_coordinates_ptr + 2 * sample, grad_x, valid)
                tl.store(grad_coordinates_ptr + 2 * sample + 1, grad_y, valid)
            if NEED_REFERENCES:
                part_x += tl.sum(by_x, 1) * width
                part_y += tl.sum(by_y, 1) * height
                if REFERENCE_DIMS == 4:
                    given_x = tl.load(coordinates_ptr + 2 * sample, valid, 0).to(tl.float32)
                    given_y = tl.load(coordinates_ptr + 2 * sample + 1, valid, 0).to(tl.float32)
                    part_width += tl.sum(tl.where(inside, by_x * given_x, 0.0), 1) * (0.5 / count) * width
                    part_height += tl.sum(tl.where(inside, by_y * given_y, 0.0), 1) * (0.5 / count) * height
        if NEED_REFERENCES:
            part_ptr = reference_parts_ptr + (row * LEVELS + n) * REFERENCE_DIMS
            tl.store(part_ptr, part_x, valid_query)
            tl.store(part_ptr + 1, part_y, valid_query)
            if REFERENCE_DIMS == 4:
                tl.store(part_ptr + 2, part_width, valid_query)
                tl.store(part_ptr + 3, part_height, valid_query)
        start += height * width
    if NEED_WEIGHTS and REFERENCE_DIMS:
        tl.debug_barrier()  # what other threads of this program have stored in by_weight is read
        for first in range(0, SAMPLES, BLOCK_K):
            sample, valid = block_samples(valid_query, 0, first, SAMPLES, HEADS, SAMPLES, BLOCK_Q, BLOCK_K)
            logit = tl.load(weights_ptr + sample, valid, 0).to(tl.float32)
            weight = tl.exp(logit - largest[:, None]) * scale[:, None]
            grad = weight * (tl.load(by_weight_ptr + sample, valid, 0) - mean[:, None])
            tl.store(grad_weights_ptr + sample, grad.to(grad_weights_ptr.dtype.element_ty), valid)


@triton.jit
def _differentiate_corner(
    value_ptr, grad_value_ptr, grad_out, pixel, present, share, channel,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, NEED_VALUE: tl.constexpr, NEED_DOT: tl.constexpr,
):  # fmt: skip
    """Adds a corner's share of grad_out to its pixel's gradient; returns grad_out times the pixel."""
    offset, mask = row_offsets(pixel, present, channel, HEADS * CHANNELS, CHANNELS)
    dot = share
    if NEED_DOT:
        corner = tl.load(value_ptr + offset, mask, 0).to(tl.float32)
        dot = tl.where(present, tl.sum(corner * grad_out, 2), 0.0)
    if NEED_VALUE:
        tl.atomic_add(grad_value_ptr + offset, share[:, :, None] * grad_out, mask, sem="relaxed")
    return dot
