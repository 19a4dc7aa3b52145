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

    known_losses = LOSSES

    def __init__(
        self,
        num_classes: int,
        matcher: MaskMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] = LOSSES,
    ) -> None:
        super().__init__(num_classes, weight_dict, eos_coef, losses)
        self.matcher = matcher

    def _forward(
        self,
        outputs: MaskPredictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        joined_sizes: Sequence[int] | None,
        draws: PointDraws | None = None,
    ) -> dict[str, Tensor]:
        if not isinstance(outputs, MaskPredictions):
            outputs = MaskPredictions.from_dict(outputs)
        if not isinstance(targets, PackedTargets):
            targets = PackedTargets.from_list(targets)
        self._check(outputs, targets)
        logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        query = self._match(MaskPredictions(logits, outputs.masks), targets, draws)
        sizes = targets.sizes if joined_sizes is None else joined_sizes
        num_masks, class_weight = self._normalizers(sizes, logits)
        losses: dict[str, Tensor] = {}
        if "labels" in self.losses:
            sums = class_loss(logits, targets.labels, query, targets.sizes, no_object=self.eos_coef)
            losses["loss_ce"] = sums / class_weight
        if "masks" in self.losses:
            matched = Matched.of(outputs, targets, query, num_masks)
            losses["loss_mask"], losses["loss_dice"] = self._mask_losses(matched, draws)
        return by_name(losses)

    def _match(
        self, predictions: MaskPredictions, targets: PackedTargets, draws: PointDraws | None
    ) -> Tensor:
        return self.matcher.match(predictions, targets).query

    def _mask_losses(self, matched: Matched, draws: PointDraws | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _check(self, outputs: MaskPredictions, targets: PackedTargets) -> None:
        self._check_classes(outputs.logits, targets)
        expected = outputs.logits.shape[:3]
        if outputs.masks.ndim != 5 or outputs.masks.shape[:3] != expected:
            raise ValueError(
                f"outputs: expected masks [L, B, Q, h, w] with L, B, Q = {[*expected]}; "
                f"got {list(outputs.masks.shape)}"
            )
        check_masks(outputs.masks, targets)


@dataclass(frozen=True)
class PointDraws:
    """The random points of one call of `MaskSetCriterion`, (x, y) uniform in 0..1.

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

    num_classes: classes without "no object".
    matcher: such as `MaskMatcher()`.
    weight_dict: the weight of each named loss in `total`, such as `mask_weights()`.
    eos_coef: the weight of "no object" in the cross-entropy.
    losses: which of "labels" and "masks" to compute.
    num_points: P, points of a mask.
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
        joined_sizes: Sequence[int] | None = None,
        draws: PointDraws | None = None,
    ) -> dict[str, Tensor]:
        """
        outputs: predictions with K + 1 classes, or the official dict. Losses are float32 for half precision.
        targets: packed with masks, or a list of dicts with `labels` [T] in [0, K), `boxes` [T, 4] and `masks`
            [T, H, W], padded as the images are.
        joined_sizes: where gradients are accumulated, the number of targets of every image of the joined
            batch; the losses are then this part's share, and their sum over the parts is the joined batch's.
        draws: the random points, instead of fresh ones.

        Losses are normalised by the joined batch of all ranks, as in `SetCriterion`.

        Returns scalars under the official names: `loss_ce`, `loss_mask` and `loss_dice` of the last
        prediction, and with suffix `_0`, `_1`, ... of those before it.

        A label out of range raises ValueError on the CPU; on a GPU, where looking would stall the queue, it
        makes `loss_ce` NaN. NaN predictions give NaN losses.
        """
        return self._forward(outputs, targets, joined_sizes, draws)

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

    num_classes: classes without "no object".
    matcher: such as `MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal")`.
    weight_dict: the weight of each named loss in `total`, such as `mask_weights(6, 1, 20, 1)`.
    eos_coef: the weight of "no object" in the cross-entropy.
    losses: which of "labels" and "masks" to compute.
    alpha, gamma: of the focal loss.
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
        joined_sizes: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """As `MaskSetCriterion.forward`; nothing is random."""
        return self._forward(outputs, targets, joined_sizes)

    def _mask_losses(self, matched: Matched, draws: PointDraws | None) -> tuple[Tensor, Tensor]:
        return map_losses(matched, self.focal)
