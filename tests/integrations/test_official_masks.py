"""Matchers of Mask2Former's, MaskFormer's and MaskDINO's form, as stand-ins, and Mask2Former's criterion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

import detr_fast
from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.integrations import official_masks


def sampled(masks: Tensor, points: Tensor) -> Tensor:
    """[N, P] of masks [N, h, w] at points [P, 2]."""
    grid = (2 * points - 1).expand(len(masks), 1, -1, -1)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0, 0]


class HungarianMatcher(nn.Module):
    """Mask2Former's; MaskDINO's with `boxes`; MaskFormer's without points."""

    def __init__(self, num_points: int | None = 4096, boxes: bool = False) -> None:
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = 2.0, 5.0, 3.0
        if num_points is not None:
            self.num_points = num_points
        if boxes:
            self.cost_box, self.cost_giou, self.panoptic_on = 5.0, 2.0, False

    def class_costs(self, logits: Tensor) -> Tensor:
        if not hasattr(self, "cost_box"):
            return -logits.softmax(-1)
        p = logits.sigmoid()
        return 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()

    def mask_costs(self, masks: Tensor, wanted: Tensor) -> Tensor:
        if hasattr(self, "num_points"):
            points = torch.rand(self.num_points, 2)
            masks, wanted = sampled(masks, points), sampled(wanted, points)
        else:
            wanted = F.interpolate(wanted[:, None].float(), masks.shape[-2:]).flatten(1)
            masks = masks.flatten(1)
        p, t = masks.sigmoid()[:, None], wanted[None]
        if hasattr(self, "num_points"):
            loss = F.softplus(masks)[:, None] - masks[:, None] * t
        else:
            loss = 0.25 * t * (1 - p) ** 2 * -p.log() + 0.75 * (1 - t) * p**2 * -(1 - p).log()
        dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
        return self.cost_mask * loss.mean(-1) + self.cost_dice * dice

    @torch.no_grad()
    def forward(self, outputs, targets):
        return self.matched(outputs, targets)

    def matched(self, outputs: Any, targets: Any, cost: Any = ("cls", "box", "mask")) -> Any:
        indices = []
        for i, target in enumerate(targets):
            costs = self.cost_class * self.class_costs(outputs["pred_logits"][i])[:, target["labels"]]
            if "mask" in cost:
                costs = costs + self.mask_costs(outputs["pred_masks"][i], target["masks"])
            if hasattr(self, "cost_box") and "box" in cost:
                found, wanted = outputs["pred_boxes"][i], target["boxes"]
                giou = generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted))
                costs = costs + self.cost_box * torch.cdist(found, wanted, p=1) - self.cost_giou * giou
            indices.append(tuple(torch.as_tensor(x) for x in linear_sum_assignment(costs)))
        return indices


class MaskDINOMatcher(HungarianMatcher):
    def __init__(self) -> None:
        super().__init__(boxes=True)

    @torch.no_grad()
    def forward(self, outputs, targets, cost=("cls", "box", "mask")):
        return "panoptic" if self.panoptic_on else self.matched(outputs, targets, cost)


MaskDINOMatcher.__name__ = "HungarianMatcher"


def case(classes: int = 9) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Outputs of which the first predict the targets."""
    masks = torch.rand(6, 32, 48) < torch.rand(6, 1, 1) * 0.6 + 0.2
    targets = [
        {"labels": torch.randint(0, classes - 1, (n,)), "masks": masks[:n], "boxes": torch.rand(n, 4)}
        for n in (6, 0, 3)
    ]
    outputs = {
        "pred_logits": torch.randn(3, 20, classes),
        "pred_masks": torch.randn(3, 20, 16, 24) * 2,
        "pred_boxes": torch.rand(3, 20, 4) * 0.4 + 0.1,
    }
    for i, target in enumerate(targets):
        for j, label in enumerate(target["labels"]):
            outputs["pred_logits"][i, j, label] += 8
            outputs["pred_boxes"][i, j] = target["boxes"][j]
            outputs["pred_masks"][i, j] += 6 * F.avg_pool2d(target["masks"][j][None].float(), 2)[0] - 3
    return outputs, targets


@pytest.mark.parametrize(
    "make", [HungarianMatcher, lambda: HungarianMatcher(None), MaskDINOMatcher], ids=["points", "maps", "all"]
)
def test_matchers(make: Any) -> None:
    matcher, (outputs, targets) = make(), case()
    own, expected = type(matcher), matcher(outputs, targets)
    assert detr_fast.accelerate(matcher).replaced == [("", "matching in one call")]
    for ours, theirs in zip(matcher(outputs, targets), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    detr_fast.restore(matcher)
    assert type(matcher) is own


@pytest.mark.parametrize("cost", [("cls",), ("cls", "box"), ("cls", "mask")])
def test_some_of_the_costs(cost: tuple[str, ...]) -> None:
    matcher, (outputs, targets) = MaskDINOMatcher(), case()
    expected = matcher(outputs, targets, cost)
    detr_fast.accelerate(matcher)
    for ours, theirs in zip(matcher(outputs, targets, cost), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    matcher.panoptic_on = True
    assert matcher(outputs, targets) == "panoptic"


def test_other_weights_are_noticed() -> None:
    class Other(HungarianMatcher):
        def class_costs(self, logits: Tensor) -> Tensor:
            return -logits

    Other.__name__ = "HungarianMatcher"
    reason = "its costs are not Mask2Former's, MaskFormer's or MaskDINO's"
    assert detr_fast.accelerate(Other()).skipped == [("", reason)]


class SetCriterion(nn.Module):
    """Mask2Former's, with as many points as its test needs to be exact."""

    scale = 1.0

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes, self.eos_coef, self.losses = classes, 0.1, ["labels", "masks"]
        self.matcher = HungarianMatcher()
        self.num_points, self.oversample_ratio, self.importance_sample_ratio = 20000, 1.0, 0.0
        self.register_buffer("empty_weight", torch.tensor([1.0] * classes + [0.1]))

    def layer(self, outputs: Any, targets: Any, suffix: str) -> dict[str, Tensor]:
        indices, logits = self.matcher(outputs, targets), outputs["pred_logits"]
        wanted = torch.full(logits.shape[:2], self.num_classes)
        found, masks = [], []
        for i, (query, target) in enumerate(indices):
            wanted[i, query] = targets[i]["labels"][target]
            points = torch.rand(self.num_points, 2)
            found.append(sampled(outputs["pred_masks"][i, query], points))
            masks.append(sampled(targets[i]["masks"][target], points))
        x, t = torch.cat(found), torch.cat(masks)
        count, p = max(len(x), 1), x.sigmoid()
        dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
        return {
            f"loss_ce{suffix}": F.cross_entropy(logits.mT, wanted, self.empty_weight),
            f"loss_mask{suffix}": F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1).sum()
            * (self.scale / count),
            f"loss_dice{suffix}": dice.sum() / count,
        }

    def forward(self, outputs, targets):
        losses = self.layer(outputs, targets, "")
        for i, layer in enumerate(outputs.get("aux_outputs", ())):
            losses |= self.layer(layer, targets, f"_{i}")
        return losses


class MaskFormerCriterion(nn.Module):
    """MaskFormer's, on whole masks."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes, self.eos_coef, self.losses = classes, 0.1, ["labels", "masks"]
        self.matcher = HungarianMatcher(None)
        self.register_buffer("empty_weight", torch.tensor([1.0] * classes + [0.1]))

    def forward(self, outputs, targets):
        losses = {}
        layers = {"": outputs} | {f"_{i}": layer for i, layer in enumerate(outputs.get("aux_outputs", ()))}
        for suffix, layer in layers.items():
            logits, indices = layer["pred_logits"], self.matcher(layer, targets)
            wanted = torch.full(logits.shape[:2], self.num_classes)
            for i, (query, target) in enumerate(indices):
                wanted[i, query] = targets[i]["labels"][target]
            found = torch.cat([x[query] for x, (query, _) in zip(layer["pred_masks"], indices, strict=True)])
            masks = [x["masks"][target] for x, (_, target) in zip(targets, indices, strict=True)]
            t = torch.cat(masks).flatten(1).float()
            size = masks[0].shape[-2:]
            x = F.interpolate(found[:, None], size, mode="bilinear", align_corners=False).flatten(1)
            p, loss = x.sigmoid(), F.binary_cross_entropy_with_logits(x, t, reduction="none")
            focal = (0.25 * t + 0.75 * (1 - t)) * (t - p).abs() ** 2 * loss
            dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
            losses |= {
                f"loss_ce{suffix}": F.cross_entropy(logits.mT, wanted, self.empty_weight),
                f"loss_mask{suffix}": focal.mean(1).sum() / max(len(x), 1),
                f"loss_dice{suffix}": dice.sum() / max(len(x), 1),
            }
        return losses


def test_the_criterion_of_maskformer() -> None:
    criterion, (outputs, targets) = MaskFormerCriterion(8), case()
    outputs["aux_outputs"] = [outputs | {"pred_logits": outputs["pred_logits"] * 0.9} for _ in range(2)]
    expected = criterion(outputs, targets)
    detr_fast.accelerate(criterion)
    assert isinstance(criterion, official_masks.WholeMaskCriterion)
    torch.testing.assert_close(criterion(outputs, targets), expected, rtol=1e-4, atol=1e-6)


class Scaled(SetCriterion):
    scale = 1.5


def test_criteria() -> None:
    criterion, (outputs, targets) = SetCriterion(8), case()
    outputs["aux_outputs"] = [outputs | {"pred_logits": outputs["pred_logits"] * 0.9} for _ in range(2)]
    expected = criterion(outputs, targets)
    assert detr_fast.accelerate(criterion).replaced == [
        ("matcher", "matching in one call"),
        ("", official_masks.WholeMaskCriterion.what),
    ]
    assert not detr_fast.accelerate(criterion).replaced
    got = criterion(outputs, targets)
    assert got.keys() == expected.keys()
    for key, x in expected.items():
        torch.testing.assert_close(got[key], x, rtol=1e-5 if "loss_ce" in key else 0.05, atol=1e-6)
    mixed = [targets[0], targets[1] | {"masks": torch.zeros(0, 30, 48, dtype=torch.bool)}, targets[2]]
    assert criterion(outputs, mixed).keys() == expected.keys()
    detr_fast.restore(criterion)
    assert (type(criterion), type(criterion.matcher)) == (SetCriterion, HungarianMatcher)


def test_a_criterion_of_other_losses_keeps_them() -> None:
    report = detr_fast.accelerate(Scaled(8))
    assert [path for path, _ in report.replaced] == ["matcher"]
    assert [text[:27] for _, text in report.skipped] == ["on a random input its losse"]
