"""mmdetection's `HungarianAssigner`, with its match costs, by our operators.

Served are the costs of its DETR, Deformable DETR, DINO, MaskFormer and Mask2Former heads, in any combination
in which each is one of ours: class or focal, L1 of (cx, cy, w, h), generalised IoU, cross-entropy or focal of
masks, dice.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detr_fast.boxes import box_xyxy_to_cxcywh
from detr_fast.integrations.swap import Replacement, argument_names, combined
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.mask_match_cost import mask_match_cost

NAME = "HungarianAssigner"


class Weights(NamedTuple):
    """What the match costs of an assigner add up to."""

    classification: Literal["softmax", "focal"] = "softmax"
    w_class: float = 0.0
    w_l1: float = 0.0
    w_giou: float = 0.0
    mask_cost: Literal["bce", "focal"] = "bce"
    w_mask: float = 0.0
    w_dice: float = 0.0
    alpha: float = 0.25
    gamma: float = 2.0


class FastAssigner(Replacement):
    """Costs and assignment of one image without their temporaries and without a loop on the host."""

    what = "match costs and assignment"

    def assign(
        self, pred_instances: Any, gt_instances: Any, img_meta: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        queries, targets = len(pred_instances), len(gt_instances)
        weights = weights_of(self)
        if not queries or not targets or isinstance(weights, str):
            return super().assign(pred_instances, gt_instances, img_meta, **kwargs)  # type: ignore[misc]
        query = matched(weights, pred_instances, gt_instances, img_meta)
        found = torch.zeros(queries, dtype=torch.int64, device=query.device)
        labels = torch.full_like(found, -1)
        target = torch.arange(targets, device=query.device)
        if targets > queries:
            target = target[query >= 0]
            query = query[target]
        found[query], labels[query] = target + 1, gt_instances.labels[target]
        original = inspect.unwrap(self.replaced.assign)  # type: ignore[attr-defined]
        result = original.__globals__["AssignResult"]
        return result(num_gts=targets, gt_inds=found, max_overlaps=None, labels=labels)


def choose(assigner: Any) -> type[Any] | str:
    """The class that an assigner gets, or the reason why it is left alone."""
    own: Any = type(assigner)
    names = argument_names(own.assign)
    if names[:3] != ["pred_instances", "gt_instances", "img_meta"]:
        expected = "assign(pred_instances, gt_instances, img_meta)"
        return f"unknown signature: expected {expected}; got ({', '.join(names)})"
    if "AssignResult" not in getattr(inspect.unwrap(own.assign), "__globals__", {}):
        return "its result is of another class than AssignResult"
    weights = weights_of(assigner)
    return weights if isinstance(weights, str) else combined(FastAssigner, own)


def weights_of(assigner: Any) -> Weights | str:
    """The sum of an assigner's match costs, or which of them is not one of ours."""
    found: dict[str, Any] = {}
    for cost in assigner.match_costs:
        part = _part(cost)
        if part is None or found.keys() & part.keys():
            return f"its match cost {type(cost).__name__} is not one of ours with these options"
        found |= part
    return Weights(**found)


def _part(cost: Any) -> dict[str, Any] | None:
    name, weight = type(cost).__name__, getattr(cost, "weight", 1.0)
    usual = getattr(cost, "alpha", 0.25) == 0.25 and getattr(cost, "gamma", 2) == 2
    if name == "ClassificationCost":
        return {"w_class": weight}
    if name == "FocalLossCost" and not cost.binary_input:
        return {"classification": "focal", "w_class": weight, "alpha": cost.alpha, "gamma": cost.gamma}
    if name == "FocalLossCost" and usual:
        return {"mask_cost": "focal", "w_mask": weight}
    if name == "BBoxL1Cost" and cost.box_format == "xywh":
        return {"w_l1": weight}
    if name == "IoUCost" and cost.iou_mode == "giou":
        return {"w_giou": weight}
    if name == "CrossEntropyLossCost" and cost.use_sigmoid:
        return {"w_mask": weight}
    if name == "DiceCost" and cost.pred_act and cost.naive_dice and cost.eps == 1:
        return {"w_dice": weight}
    return None


@torch.no_grad()
def matched(weights: Weights, predicted: Any, wanted: Any, meta: dict[str, Any] | None) -> Tensor:
    """The query of each target of one image, [T], -1 where none is left."""
    count, scores = [len(wanted)], predicted.scores.float()[None, None]
    costs = box_match_cost(
        scores,
        _boxes(predicted, meta, scores)[None, None],
        wanted.labels,
        _boxes(wanted, meta, scores),
        count,
        classification=weights.classification,
        w_class=weights.w_class,
        w_l1=weights.w_l1,
        w_giou=weights.w_giou,
        alpha=weights.alpha,
        gamma=weights.gamma,
    )
    if weights.w_mask or weights.w_dice:
        costs = costs + mask_match_cost(
            scores,
            predicted.masks.float().flatten(1)[None, None],
            wanted.labels,
            wanted.masks.float().flatten(1),
            count,
            mask_cost=weights.mask_cost,
            w_class=0.0,
            w_mask=weights.w_mask,
            w_dice=weights.w_dice,
        )
    return linear_assignment(costs, count)[0]


def _boxes(instances: Any, meta: dict[str, Any] | None, like: Tensor) -> Tensor:
    """(cx, cy, w, h) in 0..1 of absolute (x1, y1, x2, y2); where masks alone are compared, any."""
    if "bboxes" not in instances or meta is None:
        return like.new_full((len(instances), 4), 0.5)
    height, width = meta["img_shape"][:2]
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes).float()
    return box_xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))
