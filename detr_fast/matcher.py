"""Bipartite matching of queries and targets, all decoder layers and images at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.structures import Matches, PackedTargets, Predictions


class HungarianMatcher(nn.Module):
    """For each image the assignment of targets to queries of least total cost (arXiv:2005.12872, eq. 1).

    Called with an output dict and a list of target dicts it takes and returns what the matcher of
    facebookresearch/detr does; `match` serves all decoder layers in one call.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        class_cost: Literal["softmax", "focal"] = "softmax",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """Weights of the three terms; see `detr_fast.ops.box_match_cost`.

        Args:
            cost_class: weight of the class term.
            cost_bbox: weight of the L1 distance between boxes.
            cost_giou: weight of the generalized IoU.
            class_cost: "softmax" (DETR) or "focal" (Deformable DETR).
            alpha: focal balance.
            gamma: focal exponent.
        """
        super().__init__()
        if cost_class == 0 and cost_bbox == 0 and cost_giou == 0:
            raise ValueError("cost_class, cost_bbox, cost_giou: all costs cant be 0")
        if class_cost not in ("softmax", "focal"):
            raise ValueError(f"class_cost: expected 'softmax' or 'focal'; got {class_cost!r}")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost: Literal["softmax", "focal"] = class_cost
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches the last layer in the official form.

        Args:
            outputs: `pred_logits` [B, Q, K], `pred_boxes` [B, Q, 4] (cx, cy, w, h); other keys are ignored.
            targets: for each image `labels` [T] of integers and `boxes` [T, 4] (cx, cy, w, h).

        Returns:
            For each image (query indices, ascending; the target index of each): int64 tensors on the CPU of
            length min(Q, T).
        """
        for key in ("pred_logits", "pred_boxes"):
            if key not in outputs:
                raise ValueError(
                    f"outputs: expected the keys 'pred_logits' and 'pred_boxes'; got {sorted(outputs)}"
                )
        packed = PackedTargets.from_list(targets)
        last_layer = Predictions(outputs["pred_logits"][None], outputs["pred_boxes"][None])
        return self.match(last_layer, packed).as_indices(packed)

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: PackedTargets) -> Matches:
        """Matches every decoder layer; the result stays on the device of the predictions."""
        costs = box_match_cost(
            predictions.logits,
            predictions.boxes,
            targets.labels,
            targets.boxes,
            targets.sizes,
            class_cost=self.class_cost,
            w_class=self.cost_class,
            w_l1=self.cost_bbox,
            w_giou=self.cost_giou,
            alpha=self.alpha,
            gamma=self.gamma,
        )
        return Matches(linear_assignment(costs, targets.sizes))

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}, "
            f"class_cost={self.class_cost!r}"
        )
