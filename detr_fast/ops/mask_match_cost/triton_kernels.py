"""Matching costs of masks in Triton: a program takes BLOCK_Q queries of a (layer, image), BLOCK_T targets at
once, and goes through the points in tiles, each multiplied with the target values as it comes."""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.triton_math import power, query_block, softmax_statistics

OUTSIDE = tl.constexpr(-1e4)  # the mask logit of padding: it adds nothing where the target is zero


@triton.jit
def _point_terms(x, positive_factor, negative_factor, gamma, FOCAL: tl.constexpr, SQUARE: tl.constexpr):
    """Probabilities, losses where the target is zero, and what these exceed the losses where it is one by."""
    small = tl.exp(-tl.abs(x))
    inverse = 1.0 / (1.0 + small)
    p = tl.where(x > 0, inverse, small * inverse)
    # softplus(x) = max(x, 0) + log(1 + exp(-|x|)); a maximum may lose a NaN, the logarithm has it
    both = tl.log(1.0 + small)
    where_zero = tl.maximum(x, 0.0) + both
    if FOCAL:
        not_p = tl.where(x > 0, small * inverse, inverse)
        where_one = positive_factor * power(not_p, gamma, SQUARE) * (tl.maximum(-x, 0.0) + both)
        where_zero = negative_factor * power(p, gamma, SQUARE) * where_zero
        return p, where_zero, where_zero - where_one
    else:
        return p, where_zero, x


@triton.jit(do_not_specialize=("images", "queries", "classes", "targets", "points", "target_layer_stride"))
def cost_kernel(
    costs_ptr,  # [L, sumT, Q] float32
    non_finite_ptr,  # [L * B * chunks] int32: whether a chunk has a cost that is not finite
    logits_ptr,  # [L, B, Q, K]
    mask_ptr,  # [L, B, Q, X]
    labels_ptr,  # [sumT] int64
    values_ptr,  # [sumT, X], or [L, sumT, X]
    first_target_ptr,  # [B + 1] int64
    images, queries, classes, targets, points, target_layer_stride,
    w_class, w_mask, w_dice, positive_factor, negative_factor, gamma,
    FOCAL: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    layer, begin, end, query, valid, row = query_block(first_target_ptr, images, queries, BLOCK_Q)
    x_row_ptr = mask_ptr + row[:, None] * points
    needed = query < tl.where(begin < end, queries, 0)
    largest, total = softmax_statistics(logits_ptr, row, needed, classes, BLOCK_K)
    scale = -w_class / total
    lanes = tl.arange(0, BLOCK_X)
    bad = tl.zeros((BLOCK_T, BLOCK_Q), tl.int32)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        exists = target < end
        t_row_ptr = values_ptr + layer * target_layer_stride + target[:, None] * points
        # sums over the points, of one sign by lanes: these stay small, and lose few digits
        losses = tl.zeros((BLOCK_Q, BLOCK_X), tl.float32)
        probabilities = tl.zeros((BLOCK_Q, BLOCK_X), tl.float32)
        values = tl.zeros((BLOCK_T,), tl.float32)
        excess = tl.zeros((BLOCK_T, BLOCK_Q), tl.float32)
        overlap = tl.zeros((BLOCK_T, BLOCK_Q), tl.float32)
        for point in range(0, points, BLOCK_X):
            inside = point + lanes < points
            x = tl.load(x_row_ptr + (point + lanes)[None, :], valid[:, None] & inside[None, :], OUTSIDE)
            t = tl.load(t_row_ptr + (point + lanes)[None, :], exists[:, None] & inside[None, :], 0)
            t = t.to(tl.float32)
            p, where_zero, difference = _point_terms(
                x.to(tl.float32), positive_factor, negative_factor, gamma, FOCAL, SQUARE
            )
            losses += where_zero
            probabilities += p
            values += tl.sum(t, 1)
            # products of a tile are added to zero first: an error grows with the tiles, not with the points
            excess += tl.dot(t, tl.trans(difference), input_precision="ieee")
            overlap += tl.dot(t, tl.trans(p), input_precision="ieee")
        label = tl.load(labels_ptr + target, exists, 0)
        known = exists & (label >= 0) & (label < classes)
        mask = known[:, None] & valid[None, :]
        logit = tl.load(logits_ptr + row[None, :] * classes + label[:, None], mask, float("nan"))
        cost = scale[None, :] * tl.exp(logit.to(tl.float32) - largest[None, :])
        cost += w_mask * ((tl.sum(losses, 1)[None, :] - excess) / points)
        both = tl.sum(probabilities, 1)[None, :] + values[:, None]
        cost += w_dice * (1.0 - (2.0 * overlap + 1.0) / (both + 1.0))
        mask = exists[:, None] & valid[None, :]
        bad += (mask & ((cost - cost) != 0)).to(tl.int32)
        tl.store(costs_ptr + (layer * targets + target)[:, None] * queries + query[None, :], cost, mask)
    tl.store(non_finite_ptr + tl.program_id(0), tl.max(tl.max(bad, 1), 0))
