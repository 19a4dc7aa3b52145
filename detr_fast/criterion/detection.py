"""DETR's set prediction loss (Carion et al. 2020, section 3.1 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.criterion.base import StackedCriterion, by_name, check_masks, layer_weights
from detr_fast.criterion.losses import cardinality_error, classification_error
from detr_fast.criterion.mask_losses import Matched, map_losses
from detr_fast.matcher import HungarianMatcher
from detr_fast.ops.box_loss import box_loss
from detr_fast.ops.class_loss import class_loss
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions

LOSSES = ("labels", "boxes", "cardinality")


def detection_weights(
    layers: int = 6,
    loss_ce: float = 1.0,
    loss_bbox: float = 5.0,
    loss_giou: float = 2.0,
    *,
    masks: bool = False,
) -> dict[str, float]:
    """The official loss weights for `layers` decoder layers: the same ones for each.

    masks: with `loss_mask` and `loss_dice` of the last layer, 1 each.
    """
    weights = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    last = {"loss_mask": 1.0, "loss_dice": 1.0} if masks else {}
    return layer_weights(layers, weights) | last


class SetCriterion(StackedCriterion):
    """Matches targets to queries, then compares classes and boxes of the matched pairs.

    All decoder layers and images are matched in one call and every loss is one pass over them. Nothing is
    read back from a GPU.

    num_classes: classes without "no object".
    matcher: anything with `match(Predictions, PackedTargets) -> Matches` that gives min(T, Q) targets of each
        image a query of their own.
    weight_dict: the weight of each named loss in `total`.
    eos_coef: the weight of "no object" in the cross-entropy.
    losses: which of "labels", "boxes", "cardinality" and, of a detector with a mask head, "masks".
    """

    known_losses: tuple[str, ...] = (*LOSSES, "masks")

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] = LOSSES,
    ) -> None:
        super().__init__(num_classes, weight_dict, eos_coef, losses)
        self.matcher = matcher

    def forward(
        self,
        outputs: Predictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_sizes: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """
        outputs: predictions with K + 1 classes, or the official dict; half precision is raised to float32.
        targets: packed, or the official list of dicts with `labels` [T] in [0, K), `boxes` [T, 4] cxcywh and
            for the loss "masks" `masks` [T, h, w] over the image.
        joined_sizes: where gradients are accumulated, the number of targets of every image of the joined
            batch; the losses are then this part's share, and their sum over the parts is the joined batch's.

        Losses are normalised by the joined batch of all ranks and scaled by the number of ranks: the mean of
        the ranks' gradients, which DistributedDataParallel takes, is the joined batch's gradient.

        Returns scalars under the official names: `loss_ce`, `class_error`, `loss_bbox`, `loss_giou` and
        `cardinality_error` of the last decoder layer, and with suffix `_0`, `_1`, ... of the layers before it
        (`class_error`, and `loss_mask` and `loss_dice` of the loss "masks", of the last alone).

        A label out of range raises ValueError on the CPU; on a GPU, where looking would stall the queue, it
        makes `loss_ce` NaN. NaN predictions give NaN losses.
        """
        if not isinstance(outputs, Predictions):
            outputs = Predictions.from_dict(outputs)
        if not isinstance(targets, PackedTargets):
            targets = PackedTargets.from_list(targets)
        self._check(outputs, targets)
        logits, boxes = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (outputs.logits, outputs.boxes)
        )
        query = self.matcher.match(Predictions(logits, boxes), targets).query

        sizes = targets.sizes if joined_sizes is None else joined_sizes
        num_boxes, class_weight = self._normalizers(sizes, logits)

        by_layer: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        if "labels" in self.losses:
            by_layer["loss_ce"] = self._classification_loss(logits, targets, query, num_boxes, class_weight)
            last["class_error"] = classification_error(logits[-1:], targets, query[-1:])[0]
        if "boxes" in self.losses:
            losses = box_loss(boxes, targets.boxes, query, targets.sizes) / num_boxes
            by_layer["loss_bbox"], by_layer["loss_giou"] = losses.unbind()
        if "cardinality" in self.losses:
            by_layer["cardinality_error"] = cardinality_error(logits, targets.batch_index)
        if "masks" in self.losses:
            assert outputs.masks is not None
            masks = MaskPredictions(logits[-1:], outputs.masks[None])
            focal, dice = map_losses(Matched.of(masks, targets, query[-1:], num_boxes))
            last |= {"loss_mask": focal[0], "loss_dice": dice[0]}
        return by_name(by_layer) | last

    def _classification_loss(
        self,
        logits: Tensor,
        targets: PackedTargets,
        query: Tensor,
        num_boxes: Tensor | float,
        class_weight: Tensor | float,
    ) -> Tensor:
        sums = class_loss(logits, targets.labels, query, targets.sizes, no_object=self.eos_coef)
        return sums / class_weight

    def _check(self, outputs: Predictions, targets: PackedTargets) -> None:
        self._check_classes(outputs.logits, targets)
        shape = outputs.logits.shape[:3]
        if outputs.boxes.shape != (*shape, 4):
            raise ValueError(f"outputs: expected boxes {[*shape, 4]}; got {list(outputs.boxes.shape)}")
        if "masks" in self.losses:
            if outputs.masks is None or outputs.masks.shape[:-2] != shape[1:]:
                got = None if outputs.masks is None else list(outputs.masks.shape)
                raise ValueError(f"outputs: expected masks {[*shape[1:], 'h', 'w']}; got {got}")
            check_masks(outputs.masks, targets)
