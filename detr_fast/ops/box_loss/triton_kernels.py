"""L1 and GIoU losses in Triton: a program takes the targets of a (layer, image)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _targets(boxes_ptr, target_boxes_ptr, query_ptr, problem, layer, queries, targets, target, exists):
    """The matched box and the target box of each target; where it is matched; the matched box's place."""
    query = tl.load(query_ptr + layer * targets + target, exists, -1)
    matched = (query >= 0) & (query < queries)
    place = problem * queries + query
    cx = tl.load(boxes_ptr + 4 * place, matched, 0.0).to(tl.float32)
    cy = tl.load(boxes_ptr + 4 * place + 1, matched, 0.0).to(tl.float32)
    w = tl.load(boxes_ptr + 4 * place + 2, matched, 0.0).to(tl.float32)
    h = tl.load(boxes_ptr + 4 * place + 3, matched, 0.0).to(tl.float32)
    t_cx = tl.load(target_boxes_ptr + 4 * target, matched, 0.0)
    t_cy = tl.load(target_boxes_ptr + 4 * target + 1, matched, 0.0)
    t_w = tl.load(target_boxes_ptr + 4 * target + 2, matched, 0.0)
    t_h = tl.load(target_boxes_ptr + 4 * target + 3, matched, 0.0)
    return cx, cy, w, h, t_cx, t_cy, t_w, t_h, matched, place


@triton.jit
def _positive(x):
    """max(x, 0) that keeps a NaN."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _share(a, b):
    """The slope of min(a, b) by a: half where they are equal."""
    return tl.where(a < b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _side(center, size, t_center, t_size):
    """Overlap and hull along one axis, and their slopes by the box's centre and size.

    From num_targets and distances: no digits cancel, as they do among corners of small boxes.
    """
    distance = center - t_center
    apart = 0.5 * (size + t_size) - tl.abs(distance)
    inner = tl.where(size < t_size, size, t_size)
    raw = tl.where(apart < inner, apart, inner)
    # comparisons lose a NaN
    raw = tl.where(distance + size + t_size == distance + size + t_size, raw, float("nan"))
    of_apart = _share(apart, inner)
    center_slope = -of_apart * _sign(distance)
    size_slope = 0.5 * of_apart + (1.0 - of_apart) * _share(size, t_size)
    length = size + t_size - raw
    inside = raw >= 0
    exists = length >= 0
    return (
        _positive(raw),
        _positive(length),
        tl.where(inside, center_slope, 0.0),
        tl.where(inside, size_slope, 0.0),
        tl.where(exists, -center_slope, 0.0),
        tl.where(exists, 1.0 - size_slope, 0.0),
    )


@triton.jit
def _slope(d_intersection, d_hull, d_area, per_union, union_again, per_hull, hull_again):
    """The slope of 1 - GIoU from those of intersection, hull and area."""
    d_union = d_area - d_intersection
    d_iou = d_intersection * per_union - d_union * union_again
    return (d_hull - d_union) * per_hull - d_hull * hull_again - d_iou


@triton.jit(do_not_specialize=("layers", "images", "queries", "targets"))
def forward_kernel(
    sums_ptr,  # [2, L, B] float32
    boxes_ptr,  # [L, B, Q, 4]
    target_boxes_ptr,  # [sumT, 4] float32
    query_ptr,  # [L, sumT] int64
    first_target_ptr,  # [B + 1] int64
    layers, images, queries, targets,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    layer = problem // images
    begin = tl.load(first_target_ptr + problem % images)
    end = tl.load(first_target_ptr + problem % images + 1)
    l1_sum = tl.zeros((BLOCK_T,), tl.float32)
    giou_sum = tl.zeros((BLOCK_T,), tl.float32)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        cx, cy, w, h, t_cx, t_cy, t_w, t_h, matched, _place = _targets(
            boxes_ptr, target_boxes_ptr, query_ptr, problem, layer, queries, targets, target, target < end
        )
        l1 = tl.abs(cx - t_cx) + tl.abs(cy - t_cy) + tl.abs(w - t_w) + tl.abs(h - t_h)
        overlap_x, hull_x, _a, _b, _c, _d = _side(cx, w, t_cx, t_w)
        overlap_y, hull_y, _a, _b, _c, _d = _side(cy, h, t_cy, t_h)
        intersection = overlap_x * overlap_y
        hull = hull_x * hull_y
        union = _positive(w) * _positive(h) + _positive(t_w) * _positive(t_h) - intersection
        # a ratio with nothing below counts as its numerator, which is then zero
        giou = intersection / tl.where(union > 0, union, 1.0)
        giou -= (hull - union) / tl.where(hull > 0, hull, 1.0)
        l1_sum += tl.where(matched, l1, 0.0)
        giou_sum += tl.where(matched, 1.0 - giou, 0.0)
    tl.store(sums_ptr + problem, tl.sum(l1_sum, 0))
    tl.store(sums_ptr + layers.to(tl.int64) * images + problem, tl.sum(giou_sum, 0))


@triton.jit(do_not_specialize=("layers", "images", "queries", "targets"))
def backward_kernel(
    grad_boxes_ptr,  # [L, B, Q, 4], zeros
    grad_losses_ptr,  # [2, L] float32
    boxes_ptr, target_boxes_ptr, query_ptr, first_target_ptr,  # as above
    layers, images, queries, targets,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    layer = problem // images
    begin = tl.load(first_target_ptr + problem % images)
    end = tl.load(first_target_ptr + problem % images + 1)
    by_l1 = tl.load(grad_losses_ptr + layer)
    by_giou = tl.load(grad_losses_ptr + layers + layer)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        cx, cy, w, h, t_cx, t_cy, t_w, t_h, matched, place = _targets(
            boxes_ptr, target_boxes_ptr, query_ptr, problem, layer, queries, targets, target, target < end
        )
        overlap_x, hull_x, overlap_cx, overlap_w, hull_cx, hull_w = _side(cx, w, t_cx, t_w)
        overlap_y, hull_y, overlap_cy, overlap_h, hull_cy, hull_h = _side(cy, h, t_cy, t_h)
        width = _positive(w)
        height = _positive(h)
        intersection = overlap_x * overlap_y
        hull = hull_x * hull_y
        union = width * height + _positive(t_w) * _positive(t_h) - intersection
        per_union = tl.where(union > 0, 1.0 / union, 1.0)
        per_hull = tl.where(hull > 0, 1.0 / hull, 1.0)
        union_again = tl.where(union > 0, intersection * per_union * per_union, 0.0)
        hull_again = tl.where(hull > 0, (hull - union) * per_hull * per_hull, 0.0)
        by_cx = _slope(
            overlap_cx * overlap_y, hull_cx * hull_y, 0.0, per_union, union_again, per_hull, hull_again
        )
        by_cy = _slope(
            overlap_cy * overlap_x, hull_cy * hull_x, 0.0, per_union, union_again, per_hull, hull_again
        )
        area_w = tl.where(w >= 0, height, 0.0)
        area_h = tl.where(h >= 0, width, 0.0)
        by_w = _slope(
            overlap_w * overlap_y, hull_w * hull_y, area_w, per_union, union_again, per_hull, hull_again
        )
        by_h = _slope(
            overlap_h * overlap_x, hull_h * hull_x, area_h, per_union, union_again, per_hull, hull_again
        )
        out_ptr = grad_boxes_ptr + 4 * place
        kind = grad_boxes_ptr.dtype.element_ty
        tl.store(out_ptr, (by_l1 * _sign(cx - t_cx) + by_giou * by_cx).to(kind), matched)
        tl.store(out_ptr + 1, (by_l1 * _sign(cy - t_cy) + by_giou * by_cy).to(kind), matched)
        tl.store(out_ptr + 2, (by_l1 * _sign(w - t_w) + by_giou * by_w).to(kind), matched)
        tl.store(out_ptr + 3, (by_l1 * _sign(h - t_h) + by_giou * by_h).to(kind), matched)
