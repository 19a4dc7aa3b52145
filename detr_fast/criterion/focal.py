"""The set prediction loss of Deformable DETR (arXiv:2010.04159, section 4.2 and appendix A.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detr_fast.criterion.detection import LOSSES, SetCriterion, detection_weights
from detr_fast.criterion.losses import matched_iou, varifocal_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.structures import PackedTargets, Predictions


def focal_weights(layers: int = 6, *, two_stage: bool = False, loss_ce: float = 2.0) -> dict[str, float]:
    """The official loss weights for `layers` decoder layers and, with two stages, the encoder's proposals."""
    weights = detection_weights(layers, loss_ce=loss_ce)
    if two_stage:
        weights |= {f"{name}_enc": weight for name, weight in detection_weights(1, loss_ce=loss_ce).items()}
    return weights


class FocalSetCriterion(SetCriterion):
    """`SetCriterion` with a sigmoid focal loss: K independent classes and no "no object".

    The proposals of a two-stage encoder are matched and compared too, as objects of class 0, under the names
    `loss_ce_enc`, `loss_bbox_enc`, `loss_giou_enc` and `cardinality_error_enc`. As in the official code,
    `cardinality_error` takes the last class for "no object".

    Args:
        num_classes: K.
        matcher: as in `SetCriterion`; the official one is `HungarianMatcher(2, 5, 2, "focal")`.
        weight_dict: the weight of each named loss in `total`, such as `focal_weights()`.
        alpha: balance of the focal loss.
        gamma: exponent of the focal loss.
        losses: which of "labels", "boxes" and "cardinality" to compute.
    """

    known_losses = LOSSES
    extra_logits = 0

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        alpha: float = 0.25,
        gamma: float = 2.0,
        losses: Sequence[str] = LOSSES,
    ) -> None:
        super().__init__(num_classes, matcher, weight_dict, losses=losses)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected 0 <= alpha <= 1; got {alpha!r}")
        if not gamma >= 0:
            raise ValueError(f"gamma: expected gamma >= 0; got {gamma!r}")
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self,
        outputs: Predictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_num_targets: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """As `SetCriterion.forward`, with K classes; the official dict may hold `enc_outputs`."""
        predictions, targets = Predictions.of(outputs), PackedTargets.of(targets)
        losses = super().forward(predictions, targets, joined_num_targets=joined_num_targets)
        if predictions.encoder is not None:
            objects = replace(targets, labels=torch.zeros_like(targets.labels))
            proposed = super().forward(predictions.encoder, objects, joined_num_targets=joined_num_targets)
            losses |= {f"{name}_enc": loss for name, loss in proposed.items() if name != "class_error"}
        return losses

    def _classification(
        self, predictions: Predictions, targets: PackedTargets, query: Tensor
    ) -> dict[str, Any]:
        return {"classification": "focal", "alpha": self.alpha, "gamma": self.gamma}


class VarifocalSetCriterion(FocalSetCriterion):
    """`FocalSetCriterion` with RT-DETR's classification loss: a matched class learns the IoU of its box.

    The varifocal loss (arXiv:2008.13367, eq. 2; arXiv:2304.08069, section 4.3).

    Args:
        num_classes: K.
        matcher: as in `SetCriterion`; RT-DETR's is `HungarianMatcher(2, 5, 2, "focal")`.
        weight_dict: the weight of each named loss in `total`, such as `focal_weights(loss_ce=1.0)`.
        alpha: weight of classes that are not wanted.
        gamma: exponent of their scores.
        losses: which of "labels", "boxes" and "cardinality" to compute.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        alpha: float = 0.75,
        gamma: float = 2.0,
        losses: Sequence[str] = LOSSES,
    ) -> None:
        super().__init__(num_classes, matcher, weight_dict, alpha, gamma, losses)

    def _classification(
        self, predictions: Predictions, targets: PackedTargets, query: Tensor
    ) -> dict[str, Any]:
        weights = varifocal_weights(matched_iou(predictions.boxes, targets, query))
        options = {"classification": "varifocal", "target_weights": weights}
        return options | {"alpha": 1 - self.alpha, "gamma": self.gamma}
