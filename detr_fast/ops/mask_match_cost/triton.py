"""The Triton backend. Triton is imported by the first call."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.memory import empty, ready
from detr_fast.ops.triton_launch import launch, power_of_two, target_starts

_BLOCK_Q, _BLOCK_X, _BLOCK_K = 32, 16, 32
_LEAST_T, _MOST_T = 16, 32  # what a product takes, and what registers hold


def forward(call: MaskCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, mask_values, target_labels, target_values, num_targets, *_ = call
    *layers, images, queries, classes = logits.shape
    targets, points = target_labels.shape[0], mask_values.shape[-1]
    costs = empty((*layers, targets, queries), logits, torch.float32)
    if costs.numel() == 0:
        return costs
    from detr_fast.ops.mask_match_cost.triton_kernels import cost_kernel
    from detr_fast.ops.triton_match_cost import repair

    problems, chunks = (layers[0] if layers else 1) * images, -(-queries // _BLOCK_Q)
    non_finite = empty((problems * chunks,), logits, torch.int32)
    first_target = target_starts(num_targets, logits.device)
    if mask_values.dtype not in KERNEL_FLOATS:
        mask_values = mask_values.float()
    if target_values.dtype == torch.bool:
        target_values = target_values.view(torch.uint8)
    elif target_values.dtype == torch.float64:
        target_values = target_values.float()
    block_t = max(_LEAST_T, min(_MOST_T, power_of_two(max(num_targets))))
    balance = (1.0, 1.0) if call.alpha < 0 else (call.alpha, 1 - call.alpha)
    launch(
        cost_kernel,
        problems * chunks,
        4,
        (
            *(costs, non_finite, ready(logits), ready(mask_values), ready(target_labels)),
            *(ready(target_values), first_target, images, queries, classes, targets, points),
            *(
                targets * points if target_values.ndim == 3 else 0,
                call.w_class,
                call.w_mask,
                call.w_dice,
            ),
            *(*balance, call.gamma, call.focal, call.gamma == 2),
            *(_BLOCK_Q, block_t, _BLOCK_X, min(_BLOCK_K, power_of_two(classes))),
        ),
    )
    repair(costs, non_finite, first_target)
    return costs
