"""Matching costs in Triton: a program takes BLOCK_Q queries of a (layer, image), BLOCK_T targets at once."""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.triton_math import TINY, power, query_block, softmax_statistics

EPS = tl.constexpr(1e-8)


@triton.jit
def _focal(logit, alpha, gamma, SQUARE: tl.constexpr):
    small = tl.exp(-tl.abs(logit))
    inverse = 1.0 / (1.0 + small)
    p = tl.where(logit > 0, inverse, small * inverse)
    not_p = tl.where(logit > 0, small * inverse, inverse)
    negative = (1.0 - alpha) * power(p, gamma, SQUARE) * tl.log(not_p + EPS)
    positive = alpha * power(not_p, gamma, SQUARE) * tl.log(p + EPS)
    # comparisons lose a NaN
    return tl.where(logit == logit, negative - positive, float("nan"))


@triton.jit
def _box(boxes_ptr, index, mask):
    """cx, cy, w, h, and width and height that are not below zero."""
    cx = tl.load(boxes_ptr + 4 * index, mask, 0.0).to(tl.float32)
    cy = tl.load(boxes_ptr + 4 * index + 1, mask, 0.0).to(tl.float32)
    w = tl.load(boxes_ptr + 4 * index + 2, mask, 0.0).to(tl.float32)
    h = tl.load(boxes_ptr + 4 * index + 3, mask, 0.0).to(tl.float32)
    return cx, cy, w, h, tl.where(w > 0, w, 0.0), tl.where(h > 0, h, 0.0)


@triton.jit(do_not_specialize=("images", "queries", "classes", "targets"))
def cost_kernel(
    costs_ptr,  # [L, sumT, Q] float32
    non_finite_ptr,  # [L * B * chunks] int32: whether a chunk has a cost that is not finite
    logits_ptr,  # [L, B, Q, K]
    boxes_ptr,  # [L, B, Q, 4]
    labels_ptr,  # [sumT] int64
    target_boxes_ptr,  # [sumT, 4] float32
    first_target_ptr,  # [B + 1] int64
    images, queries, classes, targets, w_class, w_l1, w_giou, alpha, gamma,
    FOCAL: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    layer, begin, end, query, valid, row = query_block(first_target_ptr, images, queries, BLOCK_Q)
    largest = tl.zeros((BLOCK_Q,), tl.float32)
    scale = tl.full((BLOCK_Q,), 1.0, tl.float32) * w_class
    if not FOCAL:
        needed = query < tl.where(begin < end, queries, 0)
        largest, total = softmax_statistics(logits_ptr, row, needed, classes, BLOCK_K)
        scale = -scale / total
    cx, cy, w, h, width, height = _box(boxes_ptr, row, valid)
    bad = tl.zeros((BLOCK_T, BLOCK_Q), tl.int32)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        exists = target < end
        label = tl.load(labels_ptr + target, exists, 0)
        known = exists & (label >= 0) & (label < classes)
        mask = known[:, None] & valid[None, :]
        logit = tl.load(logits_ptr + row[None, :] * classes + label[:, None], mask, float("nan"))
        logit = logit.to(tl.float32)
        if FOCAL:
            term = scale[None, :] * _focal(logit, alpha, gamma, SQUARE)
        else:
            term = scale[None, :] * tl.exp(logit - largest[None, :])
        t_cx, t_cy, t_w, t_h, t_width, t_height = _box(target_boxes_ptr, target, exists)
        dx = tl.abs(cx[None, :] - t_cx[:, None])
        dy = tl.abs(cy[None, :] - t_cy[:, None])
        l1 = dx + dy + tl.abs(w[None, :] - t_w[:, None]) + tl.abs(h[None, :] - t_h[:, None])
        # from num_targets and distances: no digits cancel, as they do among corners of small boxes
        sum_x = width[None, :] + t_width[:, None]
        sum_y = height[None, :] + t_height[:, None]
        overlap_x = tl.minimum(0.5 * sum_x - dx, tl.minimum(width[None, :], t_width[:, None]))
        overlap_y = tl.minimum(0.5 * sum_y - dy, tl.minimum(height[None, :], t_height[:, None]))
        hull = (sum_x - overlap_x) * (sum_y - overlap_y)
        intersection = tl.maximum(overlap_x, 0.0) * tl.maximum(overlap_y, 0.0)
        together = (width * height)[None, :] + (t_width * t_height)[:, None] - intersection
        giou = intersection / tl.maximum(together, TINY) - (hull - together) / tl.maximum(hull, TINY)
        cost = term + w_l1 * l1 - w_giou * giou
        mask = exists[:, None] & valid[None, :]
        bad += (mask & ((cost - cost) != 0)).to(tl.int32)
        tl.store(costs_ptr + (layer * targets + target)[:, None] * queries + query[None, :], cost, mask)
    tl.store(non_finite_ptr + tl.program_id(0), tl.max(tl.max(bad, 1), 0))
