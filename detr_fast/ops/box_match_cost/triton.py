"""The Triton backend: the GPU kernels for people without a compiler. Triton is imported by the first call."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.memory import empty, ready
from detr_fast.ops.triton_launch import launch, power_of_two, target_starts

# eight numbers a lane of four warps at most; many short programs, as a batch has many chunks
_BLOCK_Q, _BLOCK_T, _BLOCK_K = 32, 8, 32


def forward(call: BoxCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, boxes, target_labels, target_boxes, num_targets, *_ = call
    *layers, images, queries, classes = logits.shape
    targets = target_labels.shape[0]
    costs = empty((*layers, targets, queries), logits, torch.float32)
    if costs.numel() == 0:
        return costs
    from detr_fast.ops.box_match_cost.triton_kernels import cost_kernel
    from detr_fast.ops.triton_match_cost import repair

    problems, chunks = (layers[0] if layers else 1) * images, -(-queries // _BLOCK_Q)
    non_finite = empty((problems * chunks,), logits, torch.int32)
    first_target = target_starts(num_targets, logits.device)
    boxes = ready(boxes) if boxes.dtype in KERNEL_FLOATS else ready(boxes, torch.float32)
    launch(
        cost_kernel,
        problems * chunks,
        4,
        (
            *(costs, non_finite, ready(logits), boxes, ready(target_labels)),
            *(ready(target_boxes, torch.float32), first_target),
            *(images, queries, classes, targets, *call.numbers),
            *(call.focal, call.gamma == 2, _BLOCK_Q, _BLOCK_T, min(_BLOCK_K, power_of_two(classes))),
        ),
    )
    repair(costs, non_finite, first_target)
    return costs
