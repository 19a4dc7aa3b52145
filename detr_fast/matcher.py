"""Bipartite matching of queries and targets, all decoder layers and images at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_fast.masks import chunks, resize_masks
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.mask_match_cost import mask_match_cost
from detr_fast.ops.point_sample import point_sample
from detr_fast.structures import MaskPredictions, Matches, PackedTargets, Predictions

_VALUES_AT_ONCE = 2**26  # mask values that `MaskMatcher` compares at once: 0.3 GB


class SetMatcher(nn.Module):
    """What both matchers share: the call in the official form."""

    predictions: type[Predictions] | type[MaskPredictions]
    options: tuple[str, ...]
    """The attributes that the repr shows."""

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches the last layer in the official form.

        Args:
            outputs: `pred_logits` [B, Q, K] and `pred_boxes` [B, Q, 4] (cx, cy, w, h) or, of a mask
                classifier, `pred_masks` [B, Q, h, w]; other keys are ignored.
            targets: for each image `labels` [T] of integers, `boxes` [T, 4] (cx, cy, w, h) and, of a mask
                classifier, `masks` [T, H, W] of bool, padded as the images are.

        Returns:
            For each image (query indices, ascending; the target index of each): int64 tensors on the CPU of
            length min(Q, T).
        """
        last_layer = self.predictions.from_dict({k: v for k, v in outputs.items() if k.startswith("pred_")})
        packed = PackedTargets.from_list(targets)
        return self.match(last_layer, packed).as_indices(packed)

    def match(self, predictions: Any, targets: PackedTargets) -> Matches:
        """Matches every decoder layer; the result stays on the device of the predictions."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options)


class HungarianMatcher(SetMatcher):
    """For each image the assignment of targets to queries of least total cost (arXiv:2005.12872, eq. 1).

    Called with an output dict and a list of target dicts it takes and returns what the matcher of
    facebookresearch/detr does; `match` serves all decoder layers in one call.
    """

    predictions = Predictions
    options = ("cost_class", "cost_bbox", "cost_giou", "classification")

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        classification: Literal["softmax", "focal"] = "softmax",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """Weights of the three terms; see `detr_fast.ops.box_match_cost`.

        Args:
            cost_class: weight of the class term.
            cost_bbox: weight of the L1 distance between boxes.
            cost_giou: weight of the generalized IoU.
            classification: "softmax" (DETR) or "focal" (Deformable DETR).
            alpha: focal balance.
            gamma: focal exponent.
        """
        super().__init__()
        _check_weights(cost_class=cost_class, cost_bbox=cost_bbox, cost_giou=cost_giou)
        if classification not in ("softmax", "focal"):
            raise ValueError(f"classification: expected 'softmax' or 'focal'; got {classification!r}")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.classification: Literal["softmax", "focal"] = classification
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: PackedTargets) -> Matches:
        """Matches every decoder layer; the result stays on the device of the predictions."""
        return Matches(linear_assignment(self.costs(predictions, targets), targets.num_targets))

    def costs(self, predictions: Predictions, targets: PackedTargets) -> Tensor:
        """[L, sumT, Q], see `detr_fast.ops.box_match_cost`."""
        return box_match_cost(
            predictions.logits,
            predictions.boxes,
            targets.labels,
            targets.boxes,
            targets.num_targets,
            classification=self.classification,
            w_class=self.cost_class,
            w_l1=self.cost_bbox,
            w_giou=self.cost_giou,
            alpha=self.alpha,
            gamma=self.gamma,
        )


class MaskMatcher(SetMatcher):
    """For each image the assignment of target masks to queries of least total cost.

    Mask2Former (arXiv:2112.01527, section 3.3) compares masks at `num_points` random points, the same ones
    for all pairs of an image; MaskFormer (arXiv:2107.06278, section 3.3) at every cell of the predicted
    masks, to which targets are resized by nearest neighbour (num_points = 0), with a focal cost.

    Called with an output dict and a list of target dicts it takes and returns what the official matchers do;
    `match` serves all decoder layers in one call.
    """

    predictions = MaskPredictions
    options = ("cost_class", "cost_mask", "cost_dice", "num_points", "mask_cost")

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_mask: float = 5.0,
        cost_dice: float = 5.0,
        num_points: int = 12544,
        mask_cost: Literal["bce", "focal"] = "bce",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """Weights of the three terms; see `detr_fast.ops.mask_match_cost`.

        Args:
            cost_class: weight of the class term.
            cost_mask: weight of the mean binary cross-entropy or focal loss.
            cost_dice: weight of the dice loss.
            num_points: random points of an image; 0: all cells of the predicted masks.
            mask_cost: "bce" (Mask2Former) or "focal" (MaskFormer).
            alpha: focal balance; negative: none.
            gamma: focal exponent.
        """
        super().__init__()
        _check_weights(cost_class=cost_class, cost_mask=cost_mask, cost_dice=cost_dice)
        if mask_cost not in ("bce", "focal"):
            raise ValueError(f"mask_cost: expected 'bce' or 'focal'; got {mask_cost!r}")
        if num_points < 0:
            raise ValueError(f"num_points: expected an integer >= 0; got {num_points}")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points
        self.mask_cost: Literal["bce", "focal"] = mask_cost
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def match(
        self, predictions: MaskPredictions, targets: PackedTargets, points: Tensor | None = None
    ) -> Matches:
        """Matches every decoder layer; the result stays on the device of the predictions.

        Args:
            predictions: stacked layers.
            targets: with masks, padded as the images are.
            points: [L, B, P, 2], (x, y) in 0..1, instead of random ones; ignored with num_points = 0.
        """
        logits, masks = predictions.logits, predictions.masks
        if targets.masks is None:
            raise ValueError("targets: expected masks [sumT, H, W]; got targets without masks")
        layers, images, queries, *size = masks.shape
        compared = self.num_points or size[0] * size[1]
        if not self.num_points:
            points, wanted = None, resize_masks(targets.masks, size).flatten(1)
        elif points is None:
            points = torch.rand(layers, images, compared, 2, device=masks.device)
            # from top to bottom, so that every map is read as it lies in memory
            points[..., 1] = points[..., 1].sort().values
        elif points.ndim != 4 or points.shape[:2] != (layers, images):
            raise ValueError(
                f"points: expected [L, B, P, 2] with L, B = {layers}, {images}; got {list(points.shape)}"
            )
        costs = []
        values = (images * queries + len(targets.labels)) * compared
        step = max(1, _VALUES_AT_ONCE // max(1, values))
        for some in chunks(layers, step):
            if points is None:
                found = masks[some].flatten(3)
            else:
                found, wanted = sampled_masks(predictions, targets, some, points[some])
            costs.append(
                mask_match_cost(
                    logits[some],
                    found,
                    targets.labels,
                    wanted,
                    targets.num_targets,
                    mask_cost=self.mask_cost,
                    w_class=self.cost_class,
                    w_mask=self.cost_mask,
                    w_dice=self.cost_dice,
                    alpha=self.alpha,
                    gamma=self.gamma,
                )
            )
        return Matches(linear_assignment(torch.cat(costs), targets.num_targets))


def sampled_masks(
    predictions: MaskPredictions, targets: PackedTargets, some: slice, points: Tensor
) -> tuple[Tensor, Tensor]:
    """[L, B, Q, P] logits and [L, sumT, P] targets of some layers at points [L, B, P, 2]."""
    assert targets.masks is not None
    layers, images = points.shape[:2]
    maps, place = predictions.maps()
    points = points.flatten(0, 1)
    found = point_sample(maps, points, map_index=place[some].flatten())
    layer = torch.arange(layers, device=points.device)[:, None]
    wanted = point_sample(
        targets.masks[:, None],
        points,
        map_index=torch.arange(len(targets.labels), device=points.device).repeat(layers),
        point_index=(layer * images + targets.batch_index).flatten(),
    )
    return found.unflatten(0, (layers, images)), wanted.view(layers, len(targets.labels), points.shape[1])


def _check_weights(**costs: float) -> None:
    if not any(costs.values()):
        raise ValueError(f"{', '.join(costs)}: expected at least one other than 0; got 0 for each")
