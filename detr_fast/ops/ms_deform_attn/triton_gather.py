"""The Triton kernels of a deterministic grad_value: each pixel is summed by one program, in one order.

A sample falls into the cell between the (up to) four pixels that it touches; a level has (height + 1) *
(width + 1) of them. `bin_kernel` finds the cells, the caller sorts the samples by them, and `gather_kernel`
walks for every pixel the samples of the four cells around it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.ms_deform_attn.triton_kernels import VARYING
from detr_fast.ops.ms_deform_attn.triton_sample import (
    block_samples,
    find_rows,
    level_scale,
    level_size,
    load_samples,
    points_of,
    softmax_terms,
)


@triton.jit(do_not_specialize=[*VARYING, "cells"])
def bin_kernel(
    cell_ptr,  # [B, Q, H, SAMPLES] int32 or int64: (image * H + head) * cells + cell; the last is outside
    record_ptr,  # [B, Q, H, SAMPLES, 3] float32: right column's share, lower row's share, weight
    coordinates_ptr,  # [B, Q, H, SAMPLES, 2]
    weights_ptr,  # [B, Q, H, SAMPLES]
    references_ptr,  # [B, Q, N, REFERENCE_DIMS]
    levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7,
    queries,
    cells,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, RAGGED: tl.constexpr,
    SAMPLES: tl.constexpr, REFERENCE_DIMS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, head, first_row, valid_query, coordinates_ptr, weights_ptr, references_ptr = find_rows(
        coordinates_ptr, weights_ptr, references_ptr, queries,
        HEADS, LEVELS, SAMPLES, REFERENCE_DIMS, BLOCK_Q,
    )  # fmt: skip
    cell_ptr += first_row * SAMPLES
    record_ptr += first_row * (3 * SAMPLES)
    first_cell = (image * HEADS + head) * cells
    largest, scale = softmax_terms(weights_ptr, valid_query, HEADS, SAMPLES, REFERENCE_DIMS, BLOCK_Q, BLOCK_K)
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
            cell = tl.where(inside, start + (top + 1) * (width + 1) + left + 1, cells - 1)
            tl.store(cell_ptr + sample, (first_cell + cell).to(cell_ptr.dtype.element_ty), valid)
            tl.store(record_ptr + 3 * sample, right, valid)
            tl.store(record_ptr + 3 * sample + 1, lower, valid)
            tl.store(record_ptr + 3 * sample + 2, weight, valid)
        start += (height + 1) * (width + 1)


@triton.jit(do_not_specialize=[*VARYING, "cells"])
def gather_kernel(
    grad_value_ptr,  # [B, S, H, D], written whole
    grad_out_ptr,  # [B, Q, H, D]
    record_ptr,  # [B, Q, H, SAMPLES, 3], as `bin_kernel` wrote it
    order_ptr,  # [B, Q, H, SAMPLES] int64, samples in the order of their cells
    start_ptr,  # [B * H * cells + 1], the first of each cell's samples in this order
    levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7,
    pixels,
    cells,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, SAMPLES: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    blocks = tl.cdiv(pixels, BLOCK_S)
    head = program % HEADS
    image = (program // HEADS // blocks).to(tl.int64)
    # the last, coarsest level comes first: its pixels have most samples to sum
    block = blocks - 1 - (program // HEADS) % blocks
    pixel = block.to(tl.int32) * BLOCK_S + tl.arange(0, BLOCK_S)
    valid = pixel < pixels
    channel = tl.arange(0, BLOCK_D)
    columns = tl.full((BLOCK_S,), 1, tl.int32)
    before = tl.zeros((BLOCK_S,), tl.int32)
    cells_before = tl.zeros((BLOCK_S,), tl.int32)
    start = 0
    cell_start = 0
    for n in range(0, LEVELS):
        height, width = level_size(n, levels_ptr, s0, s1, s2, s3, s4, s5, s6, s7, LEVELS)
        here = pixel >= start
        columns = tl.where(here, width, columns)
        before = tl.where(here, start, before)
        cells_before = tl.where(here, cell_start, cells_before)
        start += height * width
        cell_start += (height + 1) * (width + 1)
    y = (pixel - before) // columns
    x = (pixel - before) % columns
    total = tl.zeros((BLOCK_S, BLOCK_J, BLOCK_D), tl.float32)
    for below in range(0, 2):
        # of samples above the pixel, then below it: those left of it and those right of it lie side by side
        cell = (image * HEADS + head) * cells + cells_before + (y + below) * (columns + 1) + x
        begin = tl.load(start_ptr + cell, valid, 0).to(tl.int32)
        middle = tl.load(start_ptr + cell + 1, valid, 0).to(tl.int32)
        end = tl.load(start_ptr + cell + 2, valid, 0).to(tl.int32)
        for first in range(0, tl.max(end - begin, 0), BLOCK_J):
            j = begin[:, None] + first + tl.arange(0, BLOCK_J)[None, :]
            active = j < end[:, None]
            sample = tl.load(order_ptr + j, active, 0).to(tl.int32)
            right = tl.load(record_ptr + 3 * sample.to(tl.int64), active, 0)
            lower = tl.load(record_ptr + 3 * sample.to(tl.int64) + 1, active, 0)
            weight = tl.load(record_ptr + 3 * sample.to(tl.int64) + 2, active, 0)
            column_share = tl.where(j < middle[:, None], right, 1 - right)
            row_share = tl.where(below == 0, lower, 1 - lower)
            share = tl.where(active, weight * row_share * column_share, 0.0)
            row = (sample // (SAMPLES)).to(tl.int64)
            offset = row[:, :, None] * CHANNELS + channel[None, None, :]
            mask = active[:, :, None] & (channel < CHANNELS)[None, None, :]
            grad_out = tl.load(grad_out_ptr + offset, mask, 0).to(tl.float32)
            total = tl.fma(grad_out, share[:, :, None], total)
    grad_value = tl.sum(total, 1).to(grad_value_ptr.dtype.element_ty)
    row = (image * pixels + pixel) * HEADS + head
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    tl.store(grad_value_ptr + row[:, None] * CHANNELS + channel[None, :], grad_value, mask)
