"""How facebookresearch/Mask2Former matches and computes its losses, for comparison: layer by layer.

Written anew after the published code (matcher.py, criterion.py, and point_features.py of detectron2's
PointRend): the same tensors are made in the same order, above all the float32 copies of all target masks at
full resolution, for every prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_fast.criterion import PointDraws

Targets = Sequence[Mapping[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]

POINTS, OVERSAMPLE, IMPORTANCE = 12544, 3.0, 0.75


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """[N, 1, h, w] at points [N, P, 2] -> [N, P]."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def match(outputs: Mapping[str, Tensor], targets: Targets, points: Tensor | None = None) -> Indices:
    """(query, target) indices of each image, at fresh random points or those given, [B, P, 2]."""
    indices = []
    for image, (logits, masks, target) in enumerate(
        zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True)
    ):
        class_cost = -logits.softmax(-1)[:, target["labels"]]
        wanted, found = target["masks"].to(masks)[:, None], masks[:, None]
        drawn = torch.rand(1, POINTS, 2, device=masks.device) if points is None else points[image, None]
        wanted = point_sample(wanted, drawn.repeat(len(wanted), 1, 1))
        found = point_sample(found, drawn.repeat(len(found), 1, 1))
        cost = 5 * pairwise_entropy(found, wanted) + 2 * class_cost + 5 * pairwise_dice(found, wanted)
        query, chosen = linear_sum_assignment(cost.cpu())
        indices.append((torch.as_tensor(query), torch.as_tensor(chosen)))
    return indices


def pairwise_entropy(x: Tensor, t: Tensor) -> Tensor:
    """[Q, T] mean binary cross-entropy of logits [Q, P] and targets [T, P]."""
    positive = F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
    negative = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    total = torch.einsum("qp,tp->qt", positive, t) + torch.einsum("qp,tp->qt", negative, 1 - t)
    return total / x.shape[1]


def pairwise_dice(x: Tensor, t: Tensor) -> Tensor:
    """[Q, T] dice loss of logits [Q, P] and targets [T, P]."""
    p = x.sigmoid()
    overlap = 2 * torch.einsum("qp,tp->qt", p, t)
    return 1 - (overlap + 1) / (p.sum(-1)[:, None] + t.sum(-1)[None] + 1)


def criterion(
    outputs: Mapping[str, Any], targets: Targets, num_classes: int, draws: PointDraws | None = None
) -> dict[str, Tensor]:
    """The losses of all predictions under their official names ("no object" weighs 0.1).

    draws: the random points instead of fresh ones; those of a mask stand at its target.
    """
    num_masks = max(1.0, float(sum(len(target["labels"]) for target in targets)))
    class_weight = outputs["pred_logits"].new_ones(num_classes + 1)
    class_weight[-1] = 0.1
    losses = _layer_losses(outputs, targets, class_weight, num_masks, _of_layer(draws, -1))
    for i, layer in enumerate(outputs["aux_outputs"]):
        of_layer = _layer_losses(layer, targets, class_weight, num_masks, _of_layer(draws, i))
        losses.update({f"{name}_{i}": loss for name, loss in of_layer.items()})
    return losses


def _of_layer(draws: PointDraws | None, layer: int) -> PointDraws | None:
    if draws is None:
        return None
    return PointDraws(draws.match[layer], draws.candidates[layer], draws.extra[layer])


def _layer_losses(
    layer: Mapping[str, Tensor],
    targets: Targets,
    class_weight: Tensor,
    num_masks: float,
    draws: PointDraws | None,
) -> dict[str, Tensor]:
    logits, masks = layer["pred_logits"], layer["pred_masks"]
    indices = match(layer, targets, None if draws is None else draws.match)
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
    query, chosen = (torch.cat(side) for side in zip(*indices, strict=True))
    labels = torch.cat([target["labels"][j] for target, (_, j) in zip(targets, indices, strict=True)])
    classes = torch.full(logits.shape[:2], class_weight.numel() - 1, device=logits.device)
    classes[image, query] = labels
    entropy = F.cross_entropy(logits.transpose(1, 2), classes, class_weight)

    found = masks[image, query][:, None]
    wanted = _padded([target["masks"] for target in targets]).to(found)
    wanted = wanted[image, chosen][:, None]
    with torch.no_grad():
        first = torch.tensor([0, *(len(target["labels"]) for target in targets[:-1])]).cumsum(0)
        points = _uncertain_points(found, draws, first[image] + chosen)
        labels_at_points = point_sample(wanted, points)
    logits_at_points = point_sample(found, points)
    del found, wanted
    return {
        "loss_ce": entropy,
        "loss_mask": _entropy_loss(logits_at_points, labels_at_points, num_masks),
        "loss_dice": _dice_loss(logits_at_points, labels_at_points, num_masks),
    }


def _padded(masks: Sequence[Tensor]) -> Tensor:
    """[B, T, H, W], T the most targets of an image; beside it the official code makes a padding mask."""
    most = [max(sizes) for sizes in zip(*(mask.shape for mask in masks), strict=True)]
    padded = masks[0].new_zeros(len(masks), *most)
    for row, mask in zip(padded, masks, strict=True):
        row[tuple(slice(side) for side in mask.shape)].copy_(mask)
    return padded


def _uncertain_points(maps: Tensor, draws: PointDraws | None, target: Tensor) -> Tensor:
    rows, chosen = len(maps), int(IMPORTANCE * POINTS)
    if draws is None:
        candidates = torch.rand(rows, int(POINTS * OVERSAMPLE), 2, device=maps.device)
        extra = torch.rand(rows, POINTS - chosen, 2, device=maps.device)
    else:
        candidates, extra = draws.candidates[target], draws.extra[target]
    uncertainty = -point_sample(maps, candidates).abs()
    best = uncertainty.topk(chosen, dim=1).indices
    best = (best + candidates.shape[1] * torch.arange(rows, device=maps.device)[:, None]).flatten()
    return torch.cat([candidates.view(-1, 2)[best].view(rows, chosen, 2), extra], dim=1)


def _entropy_loss(x: Tensor, t: Tensor, num_masks: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1).sum() / num_masks


def _dice_loss(x: Tensor, t: Tensor, num_masks: float) -> Tensor:
    p = x.sigmoid()
    return (1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)).sum() / num_masks
