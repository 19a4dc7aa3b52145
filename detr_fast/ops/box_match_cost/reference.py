"""The plainest form of the costs in PyTorch: any device, float64 where the inputs are."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.checks import check_labels
from detr_fast.ops.match_cost import of_labels, penalise_non_finite

EPS = 1e-8
TINY = torch.finfo(torch.float32).tiny  # areas below count as zero, in every precision and backend


@torch.no_grad()
def forward(call: BoxCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, boxes, target_labels, target_boxes, num_targets, *_ = call
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, boxes, target_boxes = logits.to(dtype).contiguous(), boxes.to(dtype), target_boxes.to(dtype)
    if logits.device.type == "cpu":
        check_labels("target_labels", target_labels, logits.shape[-1])
    cost_of_class = focal_cost(logits, call.alpha, call.gamma) if call.focal else softmax_cost(logits)
    blocks = [logits.new_empty(*logits.shape[:-3], 0, logits.shape[-2])]
    for b, (labels, wanted) in enumerate(
        zip(target_labels.split(num_targets), target_boxes.split(num_targets), strict=True)
    ):
        classes = of_labels(cost_of_class[..., b, :, :], labels)
        found = boxes[..., b, None, :, :]
        l1 = (wanted[:, None] - found).abs().sum(-1)
        giou = generalized_iou(wanted[:, None], found)
        cost = call.w_class * classes + call.w_l1 * l1 - call.w_giou * giou
        blocks.append(penalise_non_finite(cost))
    return torch.cat(blocks, dim=-2)


def softmax_cost(logits: Tensor) -> Tensor:
    return -logits.softmax(-1)


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    p, not_p = logits.sigmoid(), (-logits).sigmoid()  # 1 - p would round to zero for confident queries
    positive = alpha * not_p**gamma * -(p + EPS).log()
    negative = (1 - alpha) * p**gamma * -(not_p + EPS).log()
    return positive - negative


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of broadcastable [..., 4] boxes (cx, cy, w, h); negative sizes count as zero, 0 / 0 as zero."""
    a_size, b_size = a[..., 2:].clamp(min=0), b[..., 2:].clamp(min=0)
    both = a_size + b_size
    # from sizes and distances rather than corners, whose differences lose the digits of small boxes
    overlap = (both / 2 - (a[..., :2] - b[..., :2]).abs()).minimum(torch.minimum(a_size, b_size))
    hull = (both - overlap).prod(-1)
    intersection = overlap.clamp(min=0).prod(-1)
    union = a_size.prod(-1) + b_size.prod(-1) - intersection
    return intersection / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)
