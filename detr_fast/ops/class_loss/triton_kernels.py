"""Classification losses in Triton: a program takes BLOCK_Q queries of a (layer, image)."""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.ops.triton_math import power, softmax_statistics


@triton.jit
def _rows(
    labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The program's layer and, [BLOCK_Q], its rows of logits, which exist, and the class that each wants,
    `objects` for none; how many of the image's labels are no class."""
    chunks = tl.cdiv(queries, BLOCK_Q)
    problem = (tl.program_id(0) // chunks).to(tl.int64)
    layer = problem // images
    begin = tl.load(first_target_ptr + problem % images)
    end = tl.load(first_target_ptr + problem % images + 1)
    query = (tl.program_id(0) % chunks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    wanted = tl.full(query.shape, -1, tl.int64)
    bad = tl.zeros((BLOCK_T,), tl.int32)
    for first in range(begin, end, BLOCK_T):
        target = first + tl.arange(0, BLOCK_T).to(tl.int64)
        exists = target < end
        label = tl.load(labels_ptr + target, exists, 0)
        bad += (exists & ((label < 0) | (label >= objects))).to(tl.int32)
        matched = tl.load(query_ptr + layer * targets + target, exists, -1)
        here = matched[:, None] == query[None, :]
        wanted = tl.maximum(wanted, tl.max(tl.where(here, label[:, None], -1), 0))
    wanted = tl.where(wanted < 0, objects, wanted)
    return layer, problem * queries + query, query < queries, wanted, tl.sum(bad, 0)


@triton.jit
def _binary(right):
    """Probability of the wrong answer and -log of the right one's, from the logit of the right answer."""
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
    surprise = tl.where(right < 0, -right, 0.0) + 2.0 * z * (p * square + 1.0)
    return tl.where(right > 0, small * inverse, inverse), surprise


@triton.jit(do_not_specialize=("images", "queries", "classes", "targets"))
def forward_kernel(
    sums_ptr,  # [L * B * chunks] float32
    logits_ptr,  # [L, B, Q, K]
    labels_ptr,  # [sumT] int64
    query_ptr,  # [L, sumT] int64
    first_target_ptr,  # [B + 1] int64
    images, queries, classes, targets, eos_coef, alpha, gamma,
    FOCAL: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    objects = classes if FOCAL else classes - 1
    _layer, row, valid, wanted, bad = _rows(
        labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects, BLOCK_Q, BLOCK_T
    )
    if FOCAL:
        k = tl.arange(0, BLOCK_K)
        loss = tl.zeros((BLOCK_Q,), tl.float32)
        for first in range(0, classes, BLOCK_K):
            mask = valid[:, None] & (first + k < classes)[None, :]
            logits = tl.load(logits_ptr + row[:, None] * classes + (first + k)[None, :], mask, 0.0)
            logits = logits.to(tl.float32)
            here = wanted[:, None] == (first + k)[None, :]
            wrong, surprise = _binary(tl.where(here, logits, -logits))
            weight = tl.where(here, alpha, 1.0 - alpha)
            loss += tl.sum(tl.where(mask, weight * power(wrong, gamma, SQUARE) * surprise, 0.0), 1)
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
    logits_ptr, labels_ptr, query_ptr, first_target_ptr,  # as above
    grad_loss_ptr,  # [L] float32
    images, queries, classes, targets, eos_coef, alpha, gamma,
    FOCAL: tl.constexpr, SQUARE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    objects = classes if FOCAL else classes - 1
    layer, row, valid, wanted, bad = _rows(
        labels_ptr, query_ptr, first_target_ptr, images, queries, targets, objects, BLOCK_Q, BLOCK_T
    )
    grad_loss = tl.where(bad > 0, float("nan"), tl.load(grad_loss_ptr + layer))
    k = tl.arange(0, BLOCK_K)
    if not FOCAL:
        largest, total = softmax_statistics(logits_ptr, row, valid, classes, BLOCK_K)
        scale = grad_loss * tl.where(wanted == objects, eos_coef, 1.0)
    for first in range(0, classes, BLOCK_K):
        mask = valid[:, None] & (first + k < classes)[None, :]
        place = row[:, None] * classes + (first + k)[None, :]
        logits = tl.load(logits_ptr + place, mask, 0.0).to(tl.float32)
        here = wanted[:, None] == (first + k)[None, :]
        if FOCAL:
            wrong, surprise = _binary(tl.where(here, logits, -logits))
            weight = tl.where(here, -alpha, 1.0 - alpha) * grad_loss
            gradient = weight * power(wrong, gamma, SQUARE) * (gamma * (1.0 - wrong) * surprise + wrong)
        else:
            p = tl.exp(logits - largest[:, None]) / total[:, None]
            gradient = scale[:, None] * (p - tl.where(here, 1.0, 0.0))
        tl.store(grad_logits_ptr + place, gradient.to(grad_logits_ptr.dtype.element_ty), mask)
