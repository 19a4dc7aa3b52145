"""The losses of DINO (arXiv:2203.03605, section 3.3, and the official code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detr_fast.criterion.base import by_name, layer_weights
from detr_fast.criterion.focal import FocalSetCriterion
from detr_fast.structures import PackedTargets, Predictions


def dino_weights(
    layers: int = 6,
    loss_ce: float = 1.0,
    loss_bbox: float = 5.0,
    loss_giou: float = 2.0,
    interm_loss_coef: float = 1.0,
) -> dict[str, float]:
    """The official loss weights of each decoder layer, its denoising queries and the encoder's proposals."""
    weights = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    denoised = {f"{name}_dn": weight for name, weight in weights.items()}
    proposed = {f"{name}_interm": weight * interm_loss_coef for name, weight in weights.items()}
    return layer_weights(layers, weights | denoised) | proposed


class DINOCriterion(FocalSetCriterion):
    """`FocalSetCriterion` for DINO: its proposals have classes, and its denoising queries need no matching.

    Decoder layers and proposals are matched and compared in one pass, denoising queries in another. Losses of
    proposals are `loss_ce_interm`, ..., those of denoising queries `loss_ce_dn`, `loss_ce_dn_0`, ..., which
    are 0 where there are none. The official code logs `loss_xy`, `loss_hw` and `cardinality_error_dn` beside.
    """

    def forward(
        self,
        outputs: Predictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_num_targets: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """As `SetCriterion.forward`; the official dict may hold `interm_outputs` and `dn_meta`."""
        predictions, targets = Predictions.of(outputs), PackedTargets.of(targets)
        layers, proposed = predictions, predictions.encoder
        if proposed is not None:
            logits = torch.cat((proposed.logits, layers.logits))
            layers = Predictions(logits, torch.cat((proposed.boxes, layers.boxes)))
        by_layer, losses = self._losses(layers, targets, joined_num_targets)
        if proposed is not None:
            losses |= {f"{name}_interm": values[0] for name, values in by_layer.items()}
            by_layer = {name: values[1:] for name, values in by_layer.items()}
        denoised = self._denoising_losses(predictions, targets, joined_num_targets)
        return losses | by_name(by_layer | {f"{name}_dn": values for name, values in denoised.items()})

    def _denoising_losses(
        self, predictions: Predictions, targets: PackedTargets, joined_num_targets: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """[L] each: every group restores every target, a mean over the groups."""
        denoised = predictions.denoised
        if denoised is None:
            none = predictions.logits.new_zeros(len(predictions.logits), dtype=torch.float32)
            names = {"labels": ("loss_ce",), "boxes": ("loss_bbox", "loss_giou")}
            return {name: none for loss in self.losses for name in names.get(loss, ())}
        num_boxes, _ = self._normalizers(targets, joined_num_targets, predictions.logits)
        groups = denoised.groups
        repeated = replace(
            targets,
            labels=targets.labels.repeat_interleave(groups.count),
            boxes=targets.boxes.repeat_interleave(groups.count, dim=0),
            num_targets=tuple(count * groups.count for count in targets.num_targets),
        )
        restored = groups.index(targets)[::2].T.flatten().expand(len(denoised.logits), -1)
        layers = Predictions(denoised.logits, denoised.boxes).widened()
        return self._compare(layers, repeated, restored, num_boxes * groups.count, 1.0)
