"""The terms of DETR's set loss, for all decoder layers and images in one pass each.

Letters as in `detr_fast.structures`. `query` is `Matches.query`: [L, sumT], -1 for a target left without a
query. Every function returns one value a layer, [L], and none waits for a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, paired_generalized_box_iou
from detr_fast.structures import PackedTargets


def classification_loss(
    logits: Tensor, labels: Tensor, slots: Tensor, eos_coef: float, class_weight: Tensor | float
) -> Tensor:
    """Cross-entropy over classes and "no object", the mean weighted by class (eos_coef for "no object").

    logits: [L, B, Q, K + 1]; labels: [sumT] in [0, K); slots: as `matched_slots` gives.
    class_weight: what to divide by, the weights' sum over the queries of the whole batch.
    A label out of range gives NaN.
    """
    no_object = logits.shape[3] - 1
    wanted, known = _wanted_classes(logits, labels, slots, no_object)
    entropy = F.cross_entropy(logits.reshape(-1, no_object + 1), wanted.reshape(-1), reduction="none")
    weight = torch.where(wanted == no_object, eos_coef, 1.0).to(entropy.dtype)
    loss = (weight * entropy.view(wanted.shape)).sum(1) / class_weight
    return loss.where(known, torch.nan)


def focal_loss(
    logits: Tensor, labels: Tensor, slots: Tensor, alpha: float, gamma: float, num_boxes: Tensor | float
) -> Tensor:
    """Sigmoid focal loss of every query and class (arXiv:1708.02002, eq. 5), summed, divided by `num_boxes`.

    logits: [L, B, Q, K]; labels: [sumT] in [0, K); slots: as `matched_slots` gives.
    alpha: the weight of a matched query's class; all others weigh 1 - alpha.
    A label out of range gives NaN.
    """
    classes = logits.shape[3]
    wanted, known = _wanted_classes(logits, labels, slots, classes)
    present = wanted[..., None] == torch.arange(classes, device=logits.device)
    logits = logits.flatten(1, 2)
    # the logit of the right answer
    right = torch.where(present, logits, -logits)
    weight = 1 - alpha + (2 * alpha - 1) * present.to(logits.dtype)
    loss = (weight * (-right).sigmoid() ** gamma * F.softplus(-right)).sum((1, 2)) / num_boxes
    return loss.where(known, torch.nan)


def box_losses(
    boxes: Tensor, targets: PackedTargets, query: Tensor, num_boxes: Tensor | float
) -> tuple[Tensor, Tensor]:
    """L1 distance and 1 - GIoU of matched pairs, each summed and divided by `num_boxes`.

    boxes: [L, B, Q, 4] cxcywh.
    """
    found = at_queries(boxes, targets.batch_index, query)
    wanted = targets.boxes.to(boxes.dtype).expand_as(found)
    l1 = (found - wanted).abs().sum(-1)
    giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted))
    matched = query >= 0
    return l1.where(matched, 0).sum(1) / num_boxes, (1 - giou).where(matched, 0).sum(1) / num_boxes


@torch.no_grad()
def cardinality_error(logits: Tensor, batch_index: Tensor) -> Tensor:
    """Mean over images of |queries that prefer some class to "no object" - targets|.

    logits: [L, B, Q, K + 1].
    """
    detected = (logits[..., :-1].amax(-1) >= logits[..., -1]).sum(-1)
    present = detected.new_zeros(logits.shape[1]).index_add(0, batch_index, torch.ones_like(batch_index))
    return (detected - present).abs().to(logits.dtype).mean(1)


@torch.no_grad()
def classification_error(logits: Tensor, targets: PackedTargets, query: Tensor) -> Tensor:
    """Percentage of matched queries whose best class is wrong; 100 where nothing is matched."""
    best = at_queries(logits, targets.batch_index, query).argmax(-1)
    matched = query >= 0
    right = ((best == targets.labels) & matched).sum(1)
    return 100 - 100 * right / matched.sum(1).clamp(min=1)


def matched_slots(shape: torch.Size, batch_index: Tensor, query: Tensor) -> Tensor:
    """[L, sumT]: where among all B * Q queries each target's query stands; B * Q for an unmatched target.

    shape: of the logits, [L, B, Q, ...].
    """
    return torch.where(query >= 0, batch_index * shape[2] + query, shape[1] * shape[2])


def _wanted_classes(logits: Tensor, labels: Tensor, slots: Tensor, unmatched: int) -> tuple[Tensor, Tensor]:
    """The class of each query, [L, B * Q], `unmatched` for the others; whether all labels are below it."""
    layers, queries = logits.shape[0], logits.shape[1] * logits.shape[2]
    known = (labels >= 0) & (labels < unmatched)
    wanted = labels.new_full((layers, queries + 1), unmatched)
    wanted = wanted.scatter(1, slots, labels.where(known, unmatched).expand(layers, -1))[:, :-1]
    return wanted, known.all()


def at_queries(values: Tensor, batch_index: Tensor, query: Tensor) -> Tensor:
    """[L, B, Q, X] -> [L, sumT, X]: the values at each target's query; at query 0 for an unmatched target."""
    index = batch_index * values.shape[2] + query.clamp(min=0)
    return values.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, values.shape[3]))
