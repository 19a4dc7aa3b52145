"""The compiled CPU backend."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.checks import label_error
from detr_fast.ops.memory import cast, empty, run


def forward(call: BoxCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, boxes, target_labels, target_boxes, num_targets, *_ = call
    *layers, _, queries, classes = logits.shape
    if boxes.dtype not in KERNEL_FLOATS:
        boxes = boxes.float()
    costs = empty((*layers, target_labels.shape[0], queries), logits, torch.float32)
    bad = run(
        extension.extension().box_match_cost_cpu,
        num_targets,
        layers[0] if layers else 1,
        queries,
        classes,
        logits,
        boxes,
        target_labels,
        cast(target_boxes, torch.float32),
        call.focal,
        *call.numbers,
        costs,
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise label_error("target_labels", target_labels, bad, classes)
    return costs
