"""Classification losses in Triton: a program takes BLOCK_Q queries of a (layer, image)."""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.triton_math import power, query_block, softmax_statistics


@triton.jit
def _rows(
    labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The program's layer and, [BLOCK_Q], its rows of logits, which exist, and the class that each wants,
    `objects` for none, and its target, -1 for none; how many of the image's labels are no class."""
    layer, begin, end, query, valid, row = query_block(first_target_ptr, images, queries, BLOCK_Q)
    chosen = tl.full(query.shape, -1, tl.int64)
    bad = tl.zeros((BLOCK_T,), tl.int32)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        exists = target < end
        label = tl.load(labels_ptr + target, exists, 0)
        bad += (exists & ((label < 0) | (label >= objects))).to(tl.int32)
        matched = tl.load(query_ptr + layer * targets + target, exists, -1)
        here = matched[:, None] == query[None, :]
        chosen = tl.maximum(chosen, tl.max(tl.where(here, target[:, None], -1), 0))
    wanted = tl.load(labels_ptr + chosen, chosen >= 0, -1)
    wanted = tl.where(wanted < 0, objects, wanted)
    return layer, row, valid, wanted, chosen, tl.sum(bad, 0)


@triton.jit
def _weights(weights_ptr, layer, targets, chosen):
    """[BLOCK_Q, 1] weights of -log p and of -log(1 - p) for each row's wanted class."""
    place = weights_ptr + 2 * (layer * targets + chosen)
    return tl.load(place, chosen >= 0, 0.0)[:, None], tl.load(place + 1, chosen >= 0, 0.0)[:, None]


@triton.jit
def _binary(right):
    """Probabilities of the right and the wrong answer and -log of each, from the logit of the right one."""
    small = tl.exp(-tl.abs(right))
    inverse = 1.0 / (1.0 + small)
    # ln(1 + small) = 2 artanh(small / (2 + small)), to 1e-7 relative
    z = small / (2.0 + small)
    square = z * z
    p = square * (1.0 / 13) + 1.0 / 11
    p = p * square + 1.0 / 9
    p = p * square + 1.0 / 7
    p = p * square + 1.0 / 5
    p = p * square + 1.0 / 3
    least = 2.0 * z * (p * square + 1.0)
    likely, unlikely = inverse, small * inverse
    return (
        tl.where(right > 0, likely, unlikely),
        tl.where(right > 0, unlikely, likely),
        tl.where(right < 0, -right, 0.0) + least,
        tl.where(right > 0, right, 0.0) + least,
    )


@triton.jit(do_not_specialize=("images", "queries", "classes", "targets"))
def forward_kernel(
    sums_ptr,  # [L * B * chunks] float32
    logits_ptr,  # [L, B, Q, K]
    labels_ptr,  # [sumT] int64
    query_ptr,  # [L, sumT] int64
    weights_ptr,  # [L, sumT, 2] float32, read where WEIGHTED
    first_target_ptr,  # [B + 1] int64
    images, queries, classes, targets, eos_coef, alpha, gamma,
    FOCAL: tl.constexpr, CONSTANT: tl.constexpr, WEIGHTED: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    objects = classes if FOCAL else classes - 1
    layer, row, valid, wanted, chosen, bad = _rows(
        labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects, BLOCK_Q, BLOCK_T
    )
    if FOCAL:
        k = tl.arange(0, BLOCK_K)
        if WEIGHTED:
            u, v = _weights(weights_ptr, layer, targets, chosen)
        loss = tl.zeros((BLOCK_Q,), tl.float32)
        for first in range(0, classes, BLOCK_K):
            mask = valid[:, None] & (first + k < classes)[None, :]
            logits = tl.load(logits_ptr + row[:, None] * classes + (first + k)[None, :], mask, 0.0)
            logits = logits.to(tl.float32)
            here = wanted[:, None] == (first + k)[None, :]
            _right, wrong, surprise, other_surprise = _binary(tl.where(here, logits, -logits))
            terms = tl.where(here, alpha, 1.0 - alpha) * power(wrong, gamma, SQUARE) * surprise
            if WEIGHTED:
                terms = tl.where(here, u * surprise + v * other_surprise, terms)
            loss += tl.sum(tl.where(mask, terms, 0.0), 1)
    else:
        largest, total = softmax_statistics(logits_ptr, row, valid, classes, BLOCK_K)
        known = valid & (wanted < classes)
        right = tl.load(logits_ptr + row * classes + wanted, known, 0.0).to(tl.float32)
        weight = tl.where(wanted == objects, eos_coef, 1.0)
        loss = tl.where(valid, weight * (tl.log(total) + (largest - right)), 0.0)
    tl.store(sums_ptr + tl.program_id(0), tl.where(bad > 0, float("nan"), tl.sum(loss, 0)))


@triton.jit(do_not_specialize=("images", "queries", "classes", "targets"))
def backward_kernel(
    grad_logits_ptr,  # [L, B, Q, K]
    logits_ptr, labels_ptr, query_ptr, weights_ptr, first_target_ptr,  # as above
    grad_loss_ptr,  # [L] float32
    images, queries, classes, targets, eos_coef, alpha, gamma,
    FOCAL: tl.constexpr, CONSTANT: tl.constexpr, WEIGHTED: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    objects = classes if FOCAL else classes - 1
    layer, row, valid, wanted, chosen, bad = _rows(
        labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects, BLOCK_Q, BLOCK_T
    )
    grad_loss = tl.where(bad > 0, float("nan"), tl.load(grad_loss_ptr + layer))
    k = tl.arange(0, BLOCK_K)
    if WEIGHTED:
        u, v = _weights(weights_ptr, layer, targets, chosen)
    if not FOCAL:
        largest, total = softmax_statistics(logits_ptr, row, valid, classes, BLOCK_K)
        scale = grad_loss * tl.where(wanted == objects, eos_coef, 1.0)
    for first in range(0, classes, BLOCK_K):
        mask = valid[:, None] & (first + k < classes)[None, :]
        place = row[:, None] * classes + (first + k)[None, :]
        logits = tl.load(logits_ptr + place, mask, 0.0).to(tl.float32)
        here = wanted[:, None] == (first + k)[None, :]
        if FOCAL:
            right, wrong, surprise, _other_surprise = _binary(tl.where(here, logits, -logits))
            slope = wrong if CONSTANT else gamma * right * surprise + wrong
            gradient = tl.where(here, -alpha, 1.0 - alpha) * power(wrong, gamma, SQUARE) * slope
            if WEIGHTED:
                gradient = tl.where(here, v * right - u * wrong, gradient)
            gradient *= grad_loss
        else:
            p = tl.exp(logits - largest[:, None]) / total[:, None]
            gradient = scale[:, None] * (p - tl.where(here, 1.0, 0.0))
        tl.store(grad_logits_ptr + place, gradient.to(grad_logits_ptr.dtype.element_ty), mask)
