"""Point samples and their adjoint in Triton: a program takes BLOCK points of a row, channel by channel."""

from __future__ import annotations

import triton
import triton.language as tl

VARYING = (
    *("count", "sets", "channels", "height", "width", "points"),
    *("map_stride", "channel_stride", "row_stride", "column_stride"),
)


@triton.jit
def _row(index_ptr, row, count, GIVEN: tl.constexpr):
    """A row's map or set of points, 0 where it has none, and whether it has one."""
    if GIVEN:
        index = tl.load(index_ptr + row)
        known = (index >= 0) & (index < count)
        return tl.where(known, index, 0), known
    else:
        return row, row >= 0


@triton.jit
def _corners(points_ptr, first, points, height, width, row_stride, column_stride, BLOCK: tl.constexpr):
    """Of BLOCK points: upper left pixel's offset, which of the four corners are in the map, shares."""
    point = first + tl.arange(0, BLOCK)
    valid = point < points
    x = tl.load(points_ptr + 2 * point, valid, 0.0) * width - 0.5
    y = tl.load(points_ptr + 2 * point + 1, valid, 0.0) * height - 0.5
    # NaN and far points become pixel 0 before they become integers
    inside = valid & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    has_left = inside & (left >= 0)
    has_right = inside & (left + 1 < width)
    p00 = has_left & (top >= 0)
    p01 = has_right & (top >= 0)
    p10 = has_left & (top + 1 < height)
    p11 = has_right & (top + 1 < height)
    pixel = top.to(tl.int64) * row_stride + left.to(tl.int64) * column_stride
    return pixel, point, valid, x - left, y - top, p00, p01, p10, p11


@triton.jit(do_not_specialize=VARYING)
def sample_kernel(
    out_ptr,  # [R, C, P]
    maps_ptr,  # [M, C, h, w] by strides
    points_ptr,  # [G, P, 2] float32
    map_index_ptr,  # [R] int64
    point_index_ptr,  # [R] int64
    count, sets, channels, height, width, points,
    map_stride, channel_stride, row_stride, column_stride,
    MAP_INDEX: tl.constexpr, POINT_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(points, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK
    chosen, known = _row(map_index_ptr, row, count, MAP_INDEX)
    located, known_points = _row(point_index_ptr, row, sets, POINT_INDEX)
    pixel, point, valid, right, lower, p00, p01, p10, p11 = _corners(
        points_ptr + 2 * located * points, first, points, height, width, row_stride, column_stride, BLOCK
    )
    missing = tl.where(known & known_points, 0.0, float("nan"))
    corner_ptr = maps_ptr + chosen * map_stride + pixel
    out_ptr += row * channels * points + point
    for _ in range(0, channels):
        v00 = tl.load(corner_ptr, p00, 0).to(tl.float32)
        v01 = tl.load(corner_ptr + column_stride, p01, 0).to(tl.float32)
        v10 = tl.load(corner_ptr + row_stride, p10, 0).to(tl.float32)
        v11 = tl.load(corner_ptr + row_stride + column_stride, p11, 0).to(tl.float32)
        above = (1 - right) * v00 + right * v01
        below = (1 - right) * v10 + right * v11
        out = (1 - lower) * above + lower * below + missing
        tl.store(out_ptr, out.to(out_ptr.dtype.element_ty), valid)
        corner_ptr += channel_stride
        out_ptr += points


@triton.jit(do_not_specialize=VARYING[:6])
def spread_kernel(
    grad_maps_ptr,  # [M, C, h, w] float32, zeroed
    grad_out_ptr,  # [R, C, P]
    points_ptr,  # [G, P, 2] float32
    map_index_ptr,  # [R] int64
    point_index_ptr,  # [R] int64
    count, sets, channels, height, width, points,
    MAP_INDEX: tl.constexpr, POINT_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(points, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK
    chosen, known = _row(map_index_ptr, row, count, MAP_INDEX)
    located, known_points = _row(point_index_ptr, row, sets, POINT_INDEX)
    wanted = tl.where(known & known_points, points, 0)
    pixel, point, valid, right, lower, p00, p01, p10, p11 = _corners(
        points_ptr + 2 * located * points, first, wanted, height, width, width, 1, BLOCK
    )
    pixels = height.to(tl.int64) * width
    corner_ptr = grad_maps_ptr + chosen * channels * pixels + pixel
    grad_out_ptr += row * channels * points + point
    for _ in range(0, channels):
        grad = tl.load(grad_out_ptr, valid, 0).to(tl.float32)
        above = (1 - lower) * grad
        below = lower * grad
        tl.atomic_add(corner_ptr, (1 - right) * above, p00, sem="relaxed")
        tl.atomic_add(corner_ptr + 1, right * above, p01, sem="relaxed")
        tl.atomic_add(corner_ptr + width, (1 - right) * below, p10, sem="relaxed")
        tl.atomic_add(corner_ptr + width + 1, right * below, p11, sem="relaxed")
        corner_ptr += pixels
        grad_out_ptr += points
