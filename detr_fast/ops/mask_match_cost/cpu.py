"""The compiled CPU backend."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.checks import label_error
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.memory import empty, run

_TARGET_DTYPES = (*KERNEL_FLOATS, torch.uint8, torch.bool)


def forward(call: MaskCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, mask_values, target_labels, target_values, num_targets, *_ = call
    *layers, _, queries, classes = logits.shape
    if mask_values.dtype not in KERNEL_FLOATS:
        mask_values = mask_values.float()
    if target_values.dtype not in _TARGET_DTYPES:
        target_values = target_values.float()
    costs = empty((*layers, target_labels.shape[0], queries), logits, torch.float32)
    bad = run(
        extension.extension().mask_match_cost_cpu,
        num_targets,
        layers[0] if layers else 1,
        queries,
        classes,
        mask_values.shape[-1],
        target_values.ndim == 3,
        logits,
        mask_values,
        target_labels,
        target_values,
        call.focal,
        *call.numbers,
        costs,
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise label_error("target_labels", target_labels, bad, classes)
    return costs
