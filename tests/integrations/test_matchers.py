"""Each code base's matcher minimises that code base's costs, and refuses the options of others."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.integrations import matchers


def case() -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    def boxes(count: int) -> torch.Tensor:
        return torch.rand(count, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1

    outputs = {"pred_logits": torch.randn(1, 60, 20) * 2, "pred_boxes": boxes(60)[None]}
    return outputs, [{"labels": torch.randint(0, 19, (25,)), "boxes": boxes(25)}]


def class_cost(kind: str, logits: torch.Tensor, alpha: float) -> torch.Tensor:
    if kind == "softmax":
        return -logits.softmax(-1)
    p = logits.sigmoid()
    return alpha * (1 - p) ** 2 * -(p + 1e-8).log() - (1 - alpha) * p**2 * -(1 - p + 1e-8).log()


@pytest.mark.parametrize(
    ("matcher", "kind", "alpha"),
    [
        (matchers.DETRMatcher(2, 5, 2), "softmax", 0.25),
        (matchers.DeformableDETRMatcher(2, 5, 2), "focal", 0.25),
        (matchers.DINOMatcher(2, 5, 2, focal_alpha=0.6), "focal", 0.6),
        (matchers.DetrexMatcher(2, 5, 2), "focal", 0.25),
        (matchers.DetrexMatcher(2, 5, 2, cost_class_type="ce_cost"), "softmax", 0.25),
        (matchers.RTDETRMatcher({"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}, True), "focal", 0.25),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.nn.Module) else None,
)
def test_the_costs_are_those_of_the_code_base(matcher: torch.nn.Module, kind: str, alpha: float) -> None:
    outputs, targets = case()
    logits, boxes = outputs["pred_logits"][0].double(), outputs["pred_boxes"][0].double()
    wanted = targets[0]["boxes"].double()
    cost = 2 * class_cost(kind, logits, alpha)[:, targets[0]["labels"]] + 5 * torch.cdist(boxes, wanted, p=1)
    cost = cost - 2 * generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted))
    best = cost[linear_sum_assignment(cost)].sum()
    found = matcher(outputs, targets)
    ((query, target),) = found["indices"] if isinstance(matcher, matchers.RTDETRMatcher) else found
    assert torch.equal(target.sort().values, torch.arange(25))
    torch.testing.assert_close(cost[query, target].sum(), best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: matchers.DETRMatcher(focal_alpha=0.25), "focal_alpha; it is one of DINOMatcher"),
        (lambda: matchers.DeformableDETRMatcher(cost_class_type="ce_cost"), "it is one of DetrexMatcher"),
        (lambda: matchers.DETRMatcher(weight_dict={}), "it is one of RTDETRMatcher"),
        (lambda: matchers.DETRMatcher(num_points=12544), "it is one of Mask2FormerMatcher"),
        (lambda: matchers.MaskFormerMatcher(num_points=12544), "it is one of Mask2FormerMatcher"),
        (lambda: matchers.Mask2FormerMatcher(cost_bbox=5), "it is one of DETRMatcher"),
        (lambda: matchers.DETRMatcher(colour=1), "DETRMatcher has no option colour$"),
    ],
)
def test_foreign_options_name_the_matcher_that_is_meant(make, meant: str) -> None:
    with pytest.raises(TypeError, match=meant):
        make()


def test_wrong_options_raise() -> None:
    with pytest.raises(ValueError, match="cost_class_type"):
        matchers.DetrexMatcher(cost_class_type="bce")
    with pytest.raises(ValueError, match="weight_dict: expected the keys"):
        matchers.RTDETRMatcher({"cost_class": 1})
    with pytest.raises(ValueError, match="num_points"):
        matchers.Mask2FormerMatcher(num_points=0)
