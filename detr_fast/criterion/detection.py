"""DETR's set prediction loss (Carion et al. 2020, section 3.1 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.boxes import likely_format
from detr_fast.criterion.base import StackedCriterion, by_name, check_masks, layer_weights
from detr_fast.criterion.losses import cardinality_error, classification_error
from detr_fast.criterion.mask_losses import Matched, map_losses
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

    With `masks`, also `loss_mask` and `loss_dice` of the last layer, 1 each.
    """
    weights = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    last = {"loss_mask": 1.0, "loss_dice": 1.0} if masks else {}
    return layer_weights(layers, weights) | last


class SetCriterion(StackedCriterion):
    """Matches targets to queries, then compares classes and boxes of the matched pairs.

    All decoder layers and images are matched in one call and every loss is one pass over them. Nothing is
    read back from a GPU.

    Args:
        num_classes: classes without "no object".
        matcher: such as `HungarianMatcher(1, 5, 2)`; anything with `match(Predictions, PackedTargets) ->
            Matches` that gives min(T, Q) targets of each image a query of their own.
        weight_dict: the weight of each named loss in `total`, such as `detection_weights()`.
        eos_coef: the weight of "no object" in the cross-entropy.
        losses: which of "labels", "boxes", "cardinality" and, of a detector with a mask head, "masks"; by
            default all but masks.
    """

    known_losses: tuple[str, ...] = (*LOSSES, "masks")
    default_losses = LOSSES

    def forward(
        self,
        outputs: Predictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_num_targets: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Named losses of one step.

        Losses are normalised by the joined batch of all ranks and scaled by the number of ranks: the mean of
        the ranks' gradients, which DistributedDataParallel takes, is the joined batch's gradient. NaN
        predictions give NaN losses.

        Args:
            outputs: predictions with K + 1 classes, or the official dict; half precision is raised to
                float32.
            targets: packed, or the official list of dicts with `labels` [T] in [0, K), `boxes` [T, 4] cxcywh
                and for the loss "masks" `masks` [T, h, w] over the image.
            joined_num_targets: where gradients are accumulated, the number of targets of every image of the
                joined batch; the losses are then this part's share, and their sum over the parts is the
                joined batch's.

        Returns:
            Scalars under the official names: `loss_ce`, `class_error`, `loss_bbox`, `loss_giou` and
            `cardinality_error` of the last decoder layer, and with suffix `_0`, `_1`, ... of the layers
            before it (`class_error`, and `loss_mask` and `loss_dice` of the loss "masks", of the last alone).

        Raises:
            ValueError: a shape does not fit, or on the CPU a label is out of range or boxes are in another
                format; on a GPU, where looking would stall the queue, such a label makes `loss_ce` NaN.
        """
        by_layer, last = self._losses(Predictions.of(outputs), PackedTargets.of(targets), joined_num_targets)
        return by_name(by_layer) | last

    def _losses(
        self, predictions: Predictions, targets: PackedTargets, joined_num_targets: Sequence[int] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses [L] of all layers, and scalars of the last."""
        self._check(predictions, targets)
        wide = predictions.widened()
        logits = wide.logits
        query = self.matcher.match(wide, targets).query
        num_boxes, class_weight = self._normalizers(targets, joined_num_targets, logits)
        by_layer = self._compare(wide, targets, query, num_boxes, class_weight)
        last: dict[str, Tensor] = {}
        if "labels" in self.losses:
            last["class_error"] = classification_error(logits[-1:], targets, query[-1:])[0]
        if "cardinality" in self.losses:
            by_layer["cardinality_error"] = cardinality_error(logits, targets.batch_index)
        if "masks" in self.losses:
            assert predictions.masks is not None
            masks = MaskPredictions(logits[-1:], predictions.masks)
            focal, dice = map_losses(Matched.of(masks, targets, query[-1:], num_boxes))
            last |= {"loss_mask": focal[0], "loss_dice": dice[0]}
        return by_layer, last

    def _compare(
        self,
        predictions: Predictions,
        targets: PackedTargets,
        query: Tensor,
        num_boxes: Tensor | float,
        class_weight: Tensor | float,
    ) -> dict[str, Tensor]:
        """Losses [L] of matched classes and boxes, normalised."""
        losses: dict[str, Tensor] = {}
        if "labels" in self.losses:
            options = self._classification(predictions, targets, query)
            sums = class_loss(predictions.logits, targets.labels, query, targets.num_targets, **options)
            losses["loss_ce"] = sums / (class_weight if self.extra_logits else num_boxes)
        if "boxes" in self.losses:
            pairs = box_loss(predictions.boxes, targets.boxes, query, targets.num_targets) / num_boxes
            losses["loss_bbox"], losses["loss_giou"] = pairs.unbind()
        return losses

    def _classification(
        self, predictions: Predictions, targets: PackedTargets, query: Tensor
    ) -> dict[str, Any]:
        """Options of `class_loss`; boxes are at hand for losses that weigh a class by their quality."""
        return {"eos_coef": self.eos_coef}

    def _check(self, predictions: Predictions, targets: PackedTargets) -> None:
        self._check_classes(predictions.logits, targets)
        shape, masks = predictions.logits.shape[:3], predictions.masks
        if predictions.boxes.shape != (*shape, 4):
            raise ValueError(f"outputs: expected boxes {[*shape, 4]}; got {list(predictions.boxes.shape)}")
        if "boxes" in self.losses:
            _check_format(targets.boxes)
        if "masks" in self.losses:
            if masks is None:
                raise ValueError("outputs: expected masks [1, B, Q, h, w]; got None")
            check_masks(masks, (1, *shape[1:]), targets)


def _check_format(boxes: Tensor) -> None:
    """ValueError for what looks like pixels or corners; on a GPU and in a graph nobody can look."""
    if boxes.device.type == "cpu" and not torch.compiler.is_compiling() and (found := likely_format(boxes)):
        raise ValueError(
            "targets: expected boxes (cx, cy, w, h) in 0..1, relative to each image; got what look like "
            f"{found}"
        )
