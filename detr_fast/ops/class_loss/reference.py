"""The plainest form of the loss in PyTorch: any device, float64 where the logits are, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.ops.checks import check_labels
from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.matched import check_queries


def forward(call: ClassLoss) -> Tensor:
    """[L] sums over queries, of checked arguments."""
    logits, labels, query, weights, num_targets, *_ = call
    layers, images, queries, classes = logits.shape
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    objects = call.objects
    if logits.device.type == "cpu" and type(labels) is Tensor:
        check_labels("labels", labels, objects)
        check_queries(query, queries)
    first = torch.tensor(
        [b * queries for b, size in enumerate(num_targets) for _ in range(size)], dtype=torch.int64
    )
    known = (labels >= 0) & (labels < objects)
    # one more place takes the targets without a query
    place = torch.where(query >= 0, query + first.to(query.device), images * queries)
    wanted = labels.new_full((layers, images * queries + 1), objects)
    wanted = wanted.scatter(1, place, labels.where(known, objects).expand(layers, -1))[:, :-1]
    rows = logits.reshape(layers, images * queries, classes)
    if not call.focal:
        loss = cross_entropy(rows, wanted, call)
    elif weights is None:
        loss = focal(rows, wanted, call)
    else:
        weights = weights.detach().to(rows.dtype)
        by_row = rows.new_zeros(layers, images * queries + 1, 2)
        by_row = by_row.scatter(1, place[..., None].expand(-1, -1, 2), weights)[:, :-1]
        loss = weighted(rows, wanted, by_row, call)
    return loss.where(known.all(), torch.nan)


def cross_entropy(logits: Tensor, wanted: Tensor, call: ClassLoss) -> Tensor:
    entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    return torch.where(wanted == logits.shape[-1] - 1, call.eos_coef * entropy, entropy).sum(1)


def focal(logits: Tensor, wanted: Tensor, call: ClassLoss) -> Tensor:
    present = wanted[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    right = torch.where(present, logits, -logits)  # the logit of the right answer
    weight = torch.where(present, call.alpha, 1 - call.alpha).to(logits.dtype)
    return (weight * (-right).sigmoid() ** call.gamma * F.softplus(-right)).sum((1, 2))


def weighted(logits: Tensor, wanted: Tensor, target_weights: Tensor, call: ClassLoss) -> Tensor:
    """target_weights: [L, B * Q, 2]."""
    present = wanted[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    u, v = target_weights[..., None].unbind(-2)
    modulation = (logits.detach() if call.constant else logits).sigmoid() ** call.gamma
    others = (1 - call.alpha) * modulation * F.softplus(logits)
    return torch.where(present, u * F.softplus(-logits) + v * F.softplus(logits), others).sum((1, 2))


def backward(grad_loss: Tensor, call: ClassLoss) -> Tensor:
    """The gradient of the logits, in their dtype."""
    differentiate = torch.func.vjp(lambda x: forward(call._replace(logits=x)), call.logits)[1]
    (gradient,) = differentiate(grad_loss)
    return gradient.contiguous()
