"""Matchers of facebookresearch/detr's kin, as stand-ins written from their interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

import detr_fast
from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou


class HungarianMatcher(nn.Module):
    """The softmax costs of facebookresearch/detr or the focal ones of Deformable-DETR and DINO."""

    def __init__(self, focal_alpha: float | None = None) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = 2.0, 5.0, 2.0
        if focal_alpha is not None:
            self.focal_alpha = focal_alpha

    @torch.no_grad()
    def forward(self, outputs, targets):
        indices = []
        for logits, boxes, target in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
            if hasattr(self, "focal_alpha"):
                p, a = logits.sigmoid(), self.focal_alpha
                classes = a * (1 - p) ** 2 * -(p + 1e-8).log() - (1 - a) * p**2 * -(1 - p + 1e-8).log()
            else:
                classes = -logits.softmax(-1)
            giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target["boxes"]))
            cost = self.cost_bbox * torch.cdist(boxes, target["boxes"], p=1) - self.cost_giou * giou
            pair = linear_sum_assignment(cost + self.cost_class * classes[:, target["labels"]])
            indices.append(tuple(torch.as_tensor(x, dtype=torch.int64) for x in pair))
        return indices


@pytest.mark.parametrize("alpha", [None, 0.25, 0.6])
def test_matchers(alpha: float | None) -> None:
    criterion = nn.Module()
    criterion.matcher = matcher = HungarianMatcher(alpha)
    outputs: dict[str, Any] = {
        "pred_logits": torch.randn(2, 40, 12) * 2,
        "pred_boxes": torch.rand(2, 40, 4) * 0.4 + 0.1,
    }
    targets = [{"labels": torch.randint(0, 11, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.1} for n in (7, 0)]
    expected = matcher(outputs, targets)
    assert detr_fast.accelerate(criterion).replaced == [("matcher", "matching in one call")]
    for ours, theirs in zip(matcher(outputs, targets), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    detr_fast.restore(criterion)
    assert type(matcher) is HungarianMatcher


def test_a_matcher_with_other_costs_is_left_alone() -> None:
    class Other(HungarianMatcher):
        def forward(self, outputs, targets):
            return super().forward(outputs | {"pred_logits": -outputs["pred_logits"]}, targets)

    Other.__name__ = "HungarianMatcher"
    report = detr_fast.accelerate(Other())
    assert report.skipped == [("", "its costs are neither DETR's nor Deformable DETR's")]
