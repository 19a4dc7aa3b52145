"""The set losses of mask classifiers: Mask2Former on points, MaskFormer on whole maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr_fast.criterion.base import StackedCriterion, by_name, check_masks, layer_weights
from detr_fast.criterion.mask_losses import Focal, Matched, map_losses, point_losses
from detr_fast.criterion.points import uncertain_points
from detr_fast.matcher import MaskMatcher
from detr_fast.ops.class_loss import class_loss
from detr_fast.structures import MaskPredictions, PackedTargets

LOSSES = ("labels", "masks")


def mask_weights(
    layers: int = 10, loss_ce: float = 2.0, loss_mask: float = 5.0, loss_dice: float = 5.0
) -> dict[str, float]:
    """Loss weights for `layers` predictions, the same ones for each.

    The defaults are Mask2Former's, whose 9 decoder layers predict 10 times; MaskFormer's are 6 layers and
    1, 20 and 1.
    """
    return layer_weights(layers, {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": loss_dice})


class _MaskCriterion(StackedCriterion):
    """What both share; they differ in the mask losses."""

    known_losses = default_losses = LOSSES
    matcher: MaskMatcher

    def _forward(
        self,
        outputs: MaskPredictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        joined_num_targets: Sequence[int] | None,
        draws: PointDraws | None = None,
    ) -> dict[str, Tensor]:
        predictions, targets = MaskPredictions.of(outputs), PackedTargets.of(targets)
        self._check_classes(predictions.logits, targets)
        check_masks(predictions.masks, tuple(predictions.logits.shape[:3]), targets)
        logits = predictions.logits.to(torch.promote_types(predictions.logits.dtype, torch.float32))
        query = self._match(MaskPredictions(logits, predictions.masks), targets, draws)
        num_masks, class_weight = self._normalizers(targets, joined_num_targets, logits)
        losses: dict[str, Tensor] = {}
        if "labels" in self.losses:
            sums = class_loss(logits, targets.labels, query, targets.num_targets, eos_coef=self.eos_coef)
            losses["loss_ce"] = sums / class_weight
        if "masks" in self.losses:
            matched = Matched.of(predictions, targets, query, num_masks)
            losses["loss_mask"], losses["loss_dice"] = self._mask_losses(matched, draws)
        return by_name(losses)

    def _match(
        self, predictions: MaskPredictions, targets: PackedTargets, draws: PointDraws | None
    ) -> Tensor:
        return self.matcher.match(predictions, targets).query

    def _mask_losses(self, matched: Matched, draws: PointDraws | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class PointDraws:
    """The random points of one call of `MaskSetCriterion`, (x, y) uniform in 0..1.

    Args:
        match: [L, B, P, 2], where the matcher compares masks.
        candidates: [L, sumT, int(oversample_ratio * P), 2], of which the least certain are kept.
        extra: [L, sumT, P - int(importance_ratio * P), 2], the points beside them.
    """

    match: Tensor
    candidates: Tensor
    extra: Tensor


class MaskSetCriterion(_MaskCriterion):
    """Mask2Former's set loss (arXiv:2112.01527, section 3.3): classes, and masks at their uncertain points.

    Of `oversample_ratio * num_points` random points of a matched mask the least certain are kept,
    `importance_ratio * num_points`, and the rest is random (PointRend, arXiv:1912.08193). All decoder layers
    and images are matched together and every loss is one pass over them. Nothing is read back from a GPU.

    Args:
        num_classes: classes without "no object".
        matcher: such as `MaskMatcher()`.
        weight_dict: the weight of each named loss in `total`, such as `mask_weights()`.
        eos_coef: the weight of "no object" in the cross-entropy.
        losses: which of "labels" and "masks" to compute.
        num_points: P, points of a mask.
        oversample_ratio: random points drawn for each point of a mask.
        importance_ratio: share of the points that are kept for their uncertainty.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: MaskMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] = LOSSES,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        super().__init__(num_classes, matcher, weight_dict, eos_coef, losses)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio

    def forward(
        self,
        outputs: MaskPredictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_num_targets: Sequence[int] | None = None,
        draws: PointDraws | None = None,
    ) -> dict[str, Tensor]:
        """Named losses of one step, normalised by the joined batch of all ranks, as in `SetCriterion`.

        Args:
            outputs: predictions with K + 1 classes, or the official dict. Losses are float32 for half
                precision; NaN predictions give NaN losses.
            targets: packed with masks, or a list of dicts with `labels` [T] in [0, K), `boxes` [T, 4] and
                `masks` [T, H, W], padded as the images are.
            joined_num_targets: see `SetCriterion.forward`.
            draws: the random points, instead of fresh ones.

        Returns:
            Scalars under the official names: `loss_ce`, `loss_mask` and `loss_dice` of the last prediction,
            and with suffix `_0`, `_1`, ... of those before it.

        Raises:
            ValueError: see `SetCriterion.forward`.
        """
        return self._forward(outputs, targets, joined_num_targets, draws)

    def _match(
        self, predictions: MaskPredictions, targets: PackedTargets, draws: PointDraws | None
    ) -> Tensor:
        return self.matcher.match(predictions, targets, draws.match if draws else None).query

    def _mask_losses(self, matched: Matched, draws: PointDraws | None) -> tuple[Tensor, Tensor]:
        points = uncertain_points(
            matched.maps[:, None],
            self.num_points,
            map_index=matched.map_index,
            oversample_ratio=self.oversample_ratio,
            importance_ratio=self.importance_ratio,
            candidates=draws.candidates.flatten(0, 1) if draws else None,
            extra=draws.extra.flatten(0, 1) if draws else None,
        )
        return point_losses(matched, points)


class MaskFormerCriterion(_MaskCriterion):
    """MaskFormer's set loss (arXiv:2107.06278, section 3.3): classes, and focal and dice loss of whole masks.

    Predicted masks are upsampled bilinearly to the targets' size, a few at a time, forward and once more
    backward.

    Args:
        num_classes: classes without "no object".
        matcher: such as `MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal")`.
        weight_dict: the weight of each named loss in `total`, such as `mask_weights(6, 1, 20, 1)`.
        eos_coef: the weight of "no object" in the cross-entropy.
        losses: which of "labels" and "masks" to compute.
        alpha: balance of the focal loss; negative: none.
        gamma: exponent of the focal loss.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: MaskMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] = LOSSES,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(num_classes, matcher, weight_dict, eos_coef, losses)
        self.focal = Focal(alpha, gamma)

    def forward(
        self,
        outputs: MaskPredictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_num_targets: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """As `MaskSetCriterion.forward`; nothing is random."""
        return self._forward(outputs, targets, joined_num_targets)

    def _mask_losses(self, matched: Matched, draws: PointDraws | None) -> tuple[Tensor, Tensor]:
        return map_losses(matched, self.focal)
