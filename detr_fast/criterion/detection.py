"""DETR's set prediction loss (Carion et al. 2020, section 3.1 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.criterion.losses import (
    box_losses,
    cardinality_error,
    classification_error,
    classification_loss,
    matched_slots,
)
from detr_fast.matcher import HungarianMatcher
from detr_fast.structures import PackedTargets, Predictions

LOSSES = ("labels", "boxes", "cardinality")


def detection_weights(
    layers: int = 6, loss_ce: float = 1.0, loss_bbox: float = 5.0, loss_giou: float = 2.0
) -> dict[str, float]:
    """The official loss weights for `layers` decoder layers: the same ones for each."""
    weights = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    return {f"{name}{suffix}": w for suffix in _suffixes(layers) for name, w in weights.items()}


class SetCriterion(nn.Module):
    """Matches targets to queries, then compares classes and boxes of the matched pairs.

    All decoder layers and images are matched in one call and every loss is one pass over them. Nothing is
    read back from a GPU.

    num_classes: classes without "no object".
    matcher: anything with `match(Predictions, PackedTargets) -> Matches` that gives min(T, Q) targets of each
        image a query of their own.
    weight_dict: the weight of each named loss in `total`.
    eos_coef: the weight of "no object" in the cross-entropy.
    losses: which of "labels", "boxes" and "cardinality" to compute.
    """

    no_object = 1
    """How many logits stand beside those of the classes."""

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] = LOSSES,
    ) -> None:
        super().__init__()
        unknown = [name for name in losses if name not in LOSSES]
        if unknown:
            raise ValueError(f"losses: expected some of {', '.join(LOSSES)}; got {unknown[0]!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1; got {num_classes}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = tuple(losses)

    def forward(
        self,
        outputs: Predictions | Mapping[str, Any],
        targets: PackedTargets | Sequence[Mapping[str, Tensor]],
        *,
        joined_sizes: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """
        outputs: predictions with K + 1 classes, or the official dict; half precision is raised to float32.
        targets: packed, or the official list of dicts with `labels` [T] in [0, K) and `boxes` [T, 4] cxcywh.
        joined_sizes: where gradients are accumulated, the number of targets of every image of the joined
            batch; the losses are then this part's share, and their sum over the parts is the joined batch's.

        Losses are normalised by the joined batch of all ranks and scaled by the number of ranks: the mean of
        the ranks' gradients, which DistributedDataParallel takes, is the joined batch's gradient.

        Returns scalars under the official names: `loss_ce`, `class_error`, `loss_bbox`, `loss_giou` and
        `cardinality_error` of the last decoder layer, and with suffix `_0`, `_1`, ... of the layers before it
        (`class_error` of the last alone).

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
            slots = matched_slots(logits.shape, targets.batch_index, query)
            by_layer["loss_ce"] = self._classification_loss(
                logits, targets.labels, slots, num_boxes, class_weight
            )
            last["class_error"] = classification_error(logits[-1:], targets, query[-1:])[0]
        if "boxes" in self.losses:
            losses = box_losses(boxes, targets, query, num_boxes)
            by_layer["loss_bbox"], by_layer["loss_giou"] = losses
        if "cardinality" in self.losses:
            by_layer["cardinality_error"] = cardinality_error(logits, targets.batch_index)
        named = {
            f"{name}{suffix}": value
            for name, values in by_layer.items()
            for suffix, value in zip(_suffixes(len(logits)), values.unbind(), strict=True)
        }
        return named | last

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses that have a weight: what to call `backward` on."""
        by_weight: dict[float, list[Tensor]] = {}
        for name, weight in self.weight_dict.items():
            if name in losses:
                by_weight.setdefault(weight, []).append(losses[name])
        if not by_weight:
            raise ValueError(f"losses: expected some of {sorted(self.weight_dict)}; got {sorted(losses)}")
        return torch.stack([weight * torch.stack(terms).sum() for weight, terms in by_weight.items()]).sum()

    def _classification_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        slots: Tensor,
        num_boxes: Tensor | float,
        class_weight: Tensor | float,
    ) -> Tensor:
        return classification_loss(logits, labels, slots, self.eos_coef, class_weight)

    def _normalizers(self, sizes: Sequence[int], logits: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Number of boxes, at least 1, and summed class weights of the joined batch, means over the ranks."""
        queries = logits.shape[2]
        matched = sum(min(size, queries) for size in sizes)
        weight = matched + self.eos_coef * (len(sizes) * queries - matched)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return float(max(sum(sizes), 1)), weight
        # filled on the device: a copy from the host would wait for it
        totals = torch.stack([torch.full((), float(x), device=logits.device) for x in (sum(sizes), weight)])
        torch.distributed.all_reduce(totals)
        means = totals / torch.distributed.get_world_size()
        return means[0].clamp(min=1), means[1]

    def _check(self, outputs: Predictions, targets: PackedTargets) -> None:
        logits, boxes, labels = outputs.logits, outputs.boxes, targets.labels
        if logits.ndim != 4 or logits.shape[3] != self.num_classes + self.no_object:
            raise ValueError(
                f"outputs: expected logits [L, B, Q, {'K + 1' if self.no_object else 'K'}] "
                f"with K = {self.num_classes}; got {list(logits.shape)}"
            )
        if boxes.shape != (*logits.shape[:3], 4):
            raise ValueError(f"outputs: expected boxes {[*logits.shape[:3], 4]}; got {list(boxes.shape)}")
        if len(targets) != logits.shape[1]:
            raise ValueError(f"targets: expected B = {logits.shape[1]} images as outputs; got {len(targets)}")
        # a compiled graph cannot look; there the match costs raise
        if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
            low, high = (int(x) for x in torch.aminmax(labels))
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"targets: expected labels in [0, {self.num_classes}); got {low if low < 0 else high}"
                )


def _suffixes(layers: int) -> list[str]:
    """Of the loss names, in the order of the decoder layers."""
    return [*(f"_{layer}" for layer in range(layers - 1)), ""]
