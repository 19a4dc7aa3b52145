"""Single losses of transformers' detection criteria, those that our operators compute.

A criterion calls `get_loss(name, outputs, targets, indices, num_boxes)` for each layer. Every matched pair is
a target of our operators, so that groups of queries and denoising queries, in which a target has several,
are nothing special.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detr_fast.criterion.losses import at_queries, matched_iou, varifocal_weights
from detr_fast.ops.box_loss import box_loss
from detr_fast.ops.class_loss import class_loss
from detr_fast.structures import PackedTargets

Targets = Sequence[Mapping[str, Tensor]]
Indices = Sequence[tuple[Tensor, Tensor]]


class Pairs(NamedTuple):
    """The matched pairs of one layer.

    Attributes:
        logits: [1, B, Q, K].
        boxes: [1, B, Q, 4].
        targets: one for each pair.
        query: [1, pairs].
    """

    logits: Tensor
    boxes: Tensor
    targets: PackedTargets
    query: Tensor

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], targets: Targets, indices: Indices) -> Pairs:
        """Those of a layer's `logits` and `pred_boxes` [B, Q, ...] by (query, target) indices an image."""
        logits, boxes = (
            x[None].to(torch.promote_types(x.dtype, torch.float32))
            for x in (outputs["logits"], outputs["pred_boxes"])
        )
        packed = PackedTargets.from_list(
            [
                {"labels": target["class_labels"][chosen], "boxes": target["boxes"][chosen]}
                for target, (_, chosen) in zip(targets, indices, strict=True)
            ]
        )
        query = torch.cat([query for query, _ in indices]).to(logits.device)
        return cls(logits, boxes, packed, query[None])

    @property
    def quality(self) -> Tensor:
        """[1, pairs] IoU."""
        return matched_iou(self.boxes, self.targets, self.query)


def compute(
    name: str, criterion: Any, outputs: Mapping[str, Tensor], targets: Targets, indices: Indices, boxes: float
) -> dict[str, Tensor]:
    """What a criterion's `get_loss` returns for one of TERMS; sums over pairs are divided by `boxes`."""
    if name == CARDINALITY:
        return {"cardinality_error": _cardinality_error(outputs["logits"], targets)}
    found = SUMS[name](criterion, Pairs.of(outputs, targets, indices))
    return {key: loss.view(()) / boxes for key, loss in found.items()}


def _varifocal(criterion: Any, pairs: Pairs) -> dict[str, Tensor]:
    """RT-DETR's."""
    weights = varifocal_weights(pairs.quality)
    return {"loss_vfl": _class_loss(pairs, weights, "varifocal", criterion.alpha, criterion.gamma)}


def _matching_aware(criterion: Any, pairs: Pairs) -> dict[str, Tensor]:
    """DEIM's (arXiv:2412.04234, eq. 6)."""
    positive = pairs.quality**criterion.gamma
    weights = torch.stack((positive, 1 - positive), -1)
    unwanted = 1.0 if criterion.mal_alpha is None else criterion.mal_alpha
    return {"loss_mal": _class_loss(pairs, weights, "varifocal", unwanted, criterion.gamma)}


def _iou_aware(criterion: Any, pairs: Pairs) -> dict[str, Tensor]:
    """LW-DETR's (arXiv:2406.03459, section 3.3)."""
    logits = at_queries(pairs.logits.detach(), pairs.targets.batch_index, pairs.query)
    score = logits.gather(2, pairs.targets.labels[None, :, None])[..., 0].sigmoid()
    power = criterion.focal_alpha
    positive = (score**power * pairs.quality ** (1 - power)).clamp(min=0.01)
    weights = torch.stack((positive, 1 - positive), -1)
    return {"loss_ce": _class_loss(pairs, weights, "focal", 1.0, 2.0)}


def _boxes(_: Any, pairs: Pairs) -> dict[str, Tensor]:
    targets = pairs.targets
    l1, giou = box_loss(pairs.boxes, targets.boxes, pairs.query, targets.num_targets)
    return {"loss_bbox": l1, "loss_giou": giou}


def _class_loss(
    pairs: Pairs, weights: Tensor, kind: Literal["focal", "varifocal"], unwanted: float, gamma: float
) -> Tensor:
    """[1], where classes that are not wanted weigh `unwanted`."""
    targets = pairs.targets
    return class_loss(
        pairs.logits,
        targets.labels,
        pairs.query,
        targets.num_targets,
        classification=kind,
        target_weights=weights,
        alpha=1 - unwanted,
        gamma=gamma,
    )


@torch.no_grad()
def _cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    # the largest logit first: a sigmoid of each takes longer than the rest
    found = (logits.amax(-1).sigmoid() > 0.5).sum(1)
    present = torch.tensor([len(target["class_labels"]) for target in targets], device=logits.device)
    return (found - present).abs().float().mean()


CARDINALITY = "cardinality"
SUMS: dict[str, Callable[[Any, Pairs], dict[str, Tensor]]] = {
    "vfl": _varifocal,
    "mal": _matching_aware,
    "labels": _iou_aware,
    "boxes": _boxes,
}
TERMS = (*SUMS, CARDINALITY)
"""Names of the terms that `compute` knows, as criteria call them."""
