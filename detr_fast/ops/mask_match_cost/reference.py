"""The plainest form of the costs in PyTorch: any device, float64 where the inputs are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from detr_fast.ops.checks import check_labels
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.match_cost import of_labels, penalise_non_finite


@torch.no_grad()
def forward(call: MaskCosts) -> Tensor:
    """[..., sumT, Q] costs of checked arguments."""
    logits, mask_values, target_labels, target_values, num_targets, *_ = call
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if logits.device.type == "cpu":
        check_labels("target_labels", target_labels, logits.shape[-1])
    cost_of_class = -logits.to(dtype).contiguous().softmax(-1)
    blocks = [cost_of_class.new_empty(*logits.shape[:-3], 0, logits.shape[-2])]
    with torch.autocast(logits.device.type, enabled=False):  # products would be of halves
        for b, (labels, values) in enumerate(
            zip(target_labels.split(num_targets), target_values.split(num_targets, dim=-2), strict=True)
        ):
            x, t = mask_values[..., b, :, :].to(dtype).contiguous(), values.to(dtype).contiguous()
            cost = call.w_class * of_labels(cost_of_class[..., b, :, :], labels)
            cost = cost + call.w_mask * mask_term(x, t, call) + call.w_dice * dice_term(x, t)
            blocks.append(penalise_non_finite(cost))
    return torch.cat(blocks, dim=-2)


def mask_term(x: Tensor, t: Tensor, call: MaskCosts) -> Tensor:
    """[..., T, Q] mean losses of logits x [..., Q, X] against targets t [..., T, X]."""
    where_one, where_zero = -logsigmoid(x), -logsigmoid(-x)
    if call.focal:
        where_one = (-x).sigmoid() ** call.gamma * where_one
        where_zero = x.sigmoid() ** call.gamma * where_zero
        if call.alpha >= 0:
            where_one, where_zero = call.alpha * where_one, (1 - call.alpha) * where_zero
    return (t @ where_one.mT + (1 - t) @ where_zero.mT) / x.shape[-1]


def dice_term(x: Tensor, t: Tensor) -> Tensor:
    """[..., T, Q], of the same."""
    p = x.sigmoid()
    return 1 - (2 * t @ p.mT + 1) / (t.sum(-1)[..., None] + p.sum(-1)[..., None, :] + 1)
