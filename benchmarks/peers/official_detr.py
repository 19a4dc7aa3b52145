"""How facebookresearch/detr matches and computes its losses, for comparison: one decoder layer after another.

Written anew after the published code (matcher.py, detr.py): the same tensors are made in the same
order, above all the block-diagonal cost matrix [B*Q, sumT] of which one part in B is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss

from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou

Targets = Sequence[Mapping[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]


def block_diagonal_cost(outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """[B, Q, sumT] costs of every query with the targets of every image; weights 1, 5 and 2."""
    images, queries = outputs["pred_logits"].shape[:2]
    probability = outputs["pred_logits"].flatten(0, 1).softmax(-1)
    boxes = outputs["pred_boxes"].flatten(0, 1)
    labels = torch.cat([target["labels"] for target in targets])
    target_boxes = torch.cat([target["boxes"] for target in targets])
    class_cost = -probability[:, labels]
    l1_cost = torch.cdist(boxes, target_boxes, p=1)
    giou_cost = -generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target_boxes))
    return (5 * l1_cost + 1 * class_cost + 2 * giou_cost).view(images, queries, -1)


@torch.no_grad()
def match(outputs: Mapping[str, Tensor], targets: Targets) -> Indices:
    """(query, target) indices of each image, by one scipy call an image."""
    costs = block_diagonal_cost(outputs, targets).cpu()
    sizes = [len(target["boxes"]) for target in targets]
    pairs = [linear_sum_assignment(cost[image]) for image, cost in enumerate(costs.split(sizes, -1))]
    return [(torch.as_tensor(i, dtype=torch.int64), torch.as_tensor(j, dtype=torch.int64)) for i, j in pairs]


def layers_of(outputs: Mapping[str, Any]) -> list[Mapping[str, Tensor]]:
    """One mapping a decoder layer, in order."""
    return [*outputs["aux_outputs"], outputs]


def criterion(outputs: Mapping[str, Any], targets: Targets, num_classes: int) -> dict[str, Tensor]:
    """The losses of all layers under their official names (eos weight 0.1)."""
    num_boxes = max(1.0, float(sum(len(target["labels"]) for target in targets)))
    class_weight = outputs["pred_logits"].new_ones(num_classes + 1)
    class_weight[-1] = 0.1
    losses = _layer_losses(outputs, targets, class_weight, num_boxes, log=True)
    for i, layer in enumerate(outputs["aux_outputs"]):
        of_layer = _layer_losses(layer, targets, class_weight, num_boxes, log=False)
        losses.update({f"{name}_{i}": loss for name, loss in of_layer.items()})
    return losses


def _layer_losses(
    layer: Mapping[str, Tensor], targets: Targets, class_weight: Tensor, num_boxes: float, log: bool
) -> dict[str, Tensor]:
    logits, boxes = layer["pred_logits"], layer["pred_boxes"]
    indices = match(layer, targets)
    picked = (
        torch.cat([torch.full_like(query, image) for image, (query, _) in enumerate(indices)]),
        torch.cat([query for query, _ in indices]),
    )
    labels = torch.cat([target["labels"][j] for target, (_, j) in zip(targets, indices, strict=True)])
    wanted = torch.full(logits.shape[:2], class_weight.numel() - 1, dtype=torch.int64, device=logits.device)
    wanted[picked] = labels
    losses = {"loss_ce": cross_entropy(logits.transpose(1, 2), wanted, class_weight)}
    if log:
        correct = (logits[picked].argmax(-1) == labels).float().mean()
        losses["class_error"] = 100 - 100 * correct
    with torch.no_grad():
        counts = torch.as_tensor([len(target["labels"]) for target in targets], device=logits.device)
        found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        losses["cardinality_error"] = l1_loss(found.float(), counts.float())
    target_boxes = torch.cat([target["boxes"][j] for target, (_, j) in zip(targets, indices, strict=True)])
    overlap = generalized_box_iou(box_cxcywh_to_xyxy(boxes[picked]), box_cxcywh_to_xyxy(target_boxes))
    losses["loss_bbox"] = l1_loss(boxes[picked], target_boxes, reduction="none").sum() / num_boxes
    losses["loss_giou"] = (1 - torch.diag(overlap)).sum() / num_boxes
    return losses
