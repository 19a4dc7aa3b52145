"""Exact assignment in Triton: a program solves one problem by successive shortest augmenting paths.

Jonker and Volgenant 1987 without its initialisation. Rows are the smaller side. All that a search knows of
the columns is held in registers: dual v, owner (a row, or -1), distance and the row it came from. A row's
dual follows from complementary slackness, c[row, column] - v[column] of the column that it owns.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(row_ptr, column_stride, column, exists, scale, penalty):
    """Costs of a row in float64; +inf where forbidden, `penalty` for NaN and -inf."""
    cost = tl.load(row_ptr + column * column_stride, exists, float("inf")).to(tl.float64) * scale
    return tl.where((cost != cost) | (cost == float("-inf")), penalty, cost)


@triton.jit
def _at(values, column, wanted):
    """The entry of an integer array [BLOCK] at one column."""
    return tl.sum(tl.where(column == wanted, values, 0), 0)


_VARYING = ("layer_stride", "target_stride", "query_stride", "images", "queries", "targets")


@triton.jit(do_not_specialize=_VARYING)
def assignment_kernel(
    costs_ptr,  # [L, sumT, Q] float32 or float64, any strides
    query_ptr,  # [L, sumT] int64
    status_ptr,  # [L, B] int32
    first_target_ptr,  # [B + 1] int64
    layer_stride, target_stride, query_stride, images, queries, targets,
    BLOCK: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    layer = problem // images
    begin = tl.load(first_target_ptr + problem % images)
    count = tl.load(first_target_ptr + problem % images + 1) - begin
    transposed = count > queries
    rows = tl.where(transposed, queries, count)
    row_stride = tl.where(transposed, query_stride, target_stride).to(tl.int64)
    column_stride = tl.where(transposed, target_stride, query_stride).to(tl.int64)
    base_ptr = costs_ptr + layer * layer_stride + begin * target_stride
    column = tl.arange(0, BLOCK)
    exists = column < tl.where(transposed, count, queries)

    low = tl.full((BLOCK,), float("inf"), tl.float64)
    high = tl.full((BLOCK,), float("-inf"), tl.float64)
    for i in range(0, rows):
        entry = tl.load(base_ptr + i * row_stride + column * column_stride, exists, float("nan"))
        entry = entry.to(tl.float64)
        finite = (entry - entry) == 0
        low = tl.where(finite & (entry < low), entry, low)
        high = tl.where(finite & (entry > high), entry, high)
    lowest = tl.min(low, 0)
    highest = tl.max(high, 0)
    largest = tl.maximum(tl.abs(lowest), tl.abs(highest))
    any_finite = lowest <= highest
    lowest = tl.where(any_finite, lowest, 0.0)
    highest = tl.where(any_finite, highest, 0.0)
    largest = tl.where(any_finite, largest, 0.0)
    # sums and differences of costs beyond 2^900 overflow; a power of two changes no order
    scale = tl.where(largest > 8.452712498170644e270, 6.223015277861142e-61, 1.0)
    penalty = highest * scale + rows * (highest * scale - lowest * scale)
    penalty += tl.maximum(largest * scale, 2.2250738585072014e-308)

    v = tl.zeros((BLOCK,), tl.float64)
    owner = tl.full((BLOCK,), -1, tl.int32)
    root = tl.zeros((), tl.int32)
    status = tl.zeros((), tl.int32)
    while (root < rows) & (status == 0):
        distance = tl.full((BLOCK,), float("inf"), tl.float64)
        origin = tl.full((BLOCK,), -1, tl.int32)
        done = tl.zeros((BLOCK,), tl.int32)
        row = root
        offset = tl.zeros((), tl.float64)
        least = tl.zeros((), tl.float64)
        end = tl.full((), -1, tl.int32)  # the free column where the path ends; -2 where there is none
        while end == -1:
            row_ptr = base_ptr + row.to(tl.int64) * row_stride
            cost = _row(row_ptr, column_stride, column, exists, scale, penalty)
            through = cost - v + offset
            better = (done == 0) & (through < distance)
            distance = tl.where(better, through, distance)
            origin = tl.where(better, row, origin)
            candidate = tl.where(done == 0, distance, float("inf"))
            least = tl.min(candidate, 0)
            if least == float("inf"):
                end = tl.full((), -2, tl.int32)
            else:
                # among equals a free column ends the search; then the first
                rank = tl.where(owner < 0, column, column + BLOCK)
                nearest = tl.min(tl.where(candidate == least, rank, 2 * BLOCK), 0) % BLOCK
                done = tl.where(column == nearest, 1, done)
                row = _at(owner, column, nearest)
                if row < 0:
                    end = nearest
                else:
                    # the owner's dual, from the column that it owns
                    owner_ptr = base_ptr + row.to(tl.int64) * row_stride
                    own = _row(owner_ptr, column_stride, nearest, True, scale, penalty)
                    offset = least - (own - tl.sum(tl.where(column == nearest, v, 0.0), 0))
        if end == -2:
            status = tl.full((), 1, tl.int32)
        else:
            v = tl.where(done == 1, v + (distance - least), v)
            while end >= 0:
                row = _at(origin, column, end)
                before = tl.max(tl.where(owner == row, column, -1), 0)
                owner = tl.where(column == end, row, owner)
                end = before
            root += 1

    # infeasible: nobody owns anything
    owner = tl.where(status == 0, owner, -1)
    by_column = transposed | (status != 0)
    target = tl.where(by_column, column, owner)
    chosen = tl.where(by_column, owner, column)
    query_ptr += layer * targets + begin
    tl.store(query_ptr + target, chosen.to(tl.int64), (target >= 0) & (target < count))
    tl.store(status_ptr + problem, status)
