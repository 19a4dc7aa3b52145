"""Matchers of facebookresearch/detr's kin, as stand-ins written from their interface."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

import detr_fast
from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.integrations import official_criterion, official_matcher

Outputs = dict[str, Any]


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


class RTDETRMatcher(HungarianMatcher):
    """RT-DETR's and D-FINE's: indices in a dict, and several for a target where asked for."""

    def forward(self, outputs, targets, return_topk=False):
        if return_topk:
            return {"indices_o2m": return_topk}
        return {"indices": super().forward(outputs, targets)}


RTDETRMatcher.__name__ = "HungarianMatcher"


class RFDETRMatcher(HungarianMatcher):
    """rfdetr's: groups of queries matched apart, and masks compared where there are any."""

    def __init__(self) -> None:
        super().__init__(0.25)
        self.cost_mask_ce = 1.0

    def forward(self, outputs, targets, group_detr=1):
        if "masks" in targets[0]:
            return "masks compared"
        parts = [{key: x.chunk(group_detr, 1)[i] for key, x in outputs.items()} for i in range(group_detr)]
        size = outputs["pred_logits"].shape[1] // group_detr
        found = [super(RFDETRMatcher, self).forward(part, targets) for part in parts]
        return [
            tuple(torch.cat([x[k] + i * size * (k == 0) for i, x in enumerate(image)]) for k in (0, 1))
            for image in zip(*found, strict=True)
        ]


RFDETRMatcher.__name__ = "HungarianMatcher"


def case(classes: int = 12, queries: int = 40) -> tuple[Outputs, list[dict[str, torch.Tensor]]]:
    def boxes(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 4) * 0.4 + 0.1

    outputs = {"pred_logits": torch.randn(2, queries, classes) * 2, "pred_boxes": boxes(2, queries)}
    return outputs, [{"labels": torch.randint(0, classes - 1, (n,)), "boxes": boxes(n)} for n in (7, 0)]


def test_matchers_that_return_a_dict_and_their_own_options() -> None:
    matcher, (outputs, targets) = RTDETRMatcher(0.25), case()
    expected = matcher(outputs, targets)
    assert detr_fast.accelerate(matcher).replaced
    for ours, theirs in zip(matcher(outputs, targets)["indices"], expected["indices"], strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert matcher(outputs, targets, return_topk=2) == {"indices_o2m": 2}


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_of_queries(groups: int) -> None:
    matcher, (outputs, targets) = RFDETRMatcher(), case()
    expected = matcher(outputs, targets, group_detr=groups)
    assert detr_fast.accelerate(matcher).replaced
    for ours, theirs in zip(matcher(outputs, targets, group_detr=groups), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    masked = outputs | {"pred_masks": torch.zeros(2, 40, 2, 2)}
    assert matcher(masked, [x | {"masks": None} for x in targets]) == "masks compared"


class SetCriterion(nn.Module):
    """facebookresearch/detr's or, with a focal matcher, Deformable-DETR's, by plain PyTorch."""

    scale = 1.0

    def __init__(self, classes: int, matcher: nn.Module) -> None:
        super().__init__()
        self.num_classes, self.matcher, self.losses = classes, matcher, ["labels", "boxes"]
        if hasattr(matcher, "focal_alpha"):
            self.focal_alpha = 0.25
        else:
            self.eos_coef = 0.1
            self.register_buffer("empty_weight", torch.tensor([1.0] * classes + [0.1]))

    def layer(self, outputs, targets, suffix):
        logits, num_boxes = outputs["pred_logits"], max(1, sum(len(x["labels"]) for x in targets))
        indices = self.matcher(outputs, targets)
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
        query = torch.cat([query for query, _ in indices])
        labels = torch.cat([x["labels"][j] for x, (_, j) in zip(targets, indices, strict=True)])
        boxes = torch.cat([x["boxes"][j] for x, (_, j) in zip(targets, indices, strict=True)])
        wanted = torch.full(logits.shape[:2], self.num_classes)
        wanted[image, query] = labels
        if hasattr(self, "focal_alpha"):
            onehot = torch.zeros(*logits.shape[:2], self.num_classes + 1).scatter_(2, wanted[..., None], 1)
            onehot, p = onehot[..., :-1], logits.sigmoid()
            weight = (0.25 * onehot + 0.75 * (1 - onehot)) * (onehot - p).abs() ** 2
            loss = nn.functional.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
            losses = {"loss_ce": (weight * loss).sum() / num_boxes}
        else:
            losses = {"loss_ce": nn.functional.cross_entropy(logits.mT, wanted, self.empty_weight)}
        if not suffix:
            right = logits[image, query].argmax(-1) == labels
            losses["class_error"] = 100 - 100 * right.float().mean()
        found = outputs["pred_boxes"][image, query]
        giou = generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(boxes)).diag()
        losses |= {"loss_bbox": (found - boxes).abs().sum(), "loss_giou": (1 - giou).sum()}
        losses |= {key: losses[key] * self.scale / num_boxes for key in ("loss_bbox", "loss_giou")}
        return {key + suffix: x for key, x in losses.items()}

    def forward(self, outputs, targets):
        losses = self.layer(outputs, targets, "")
        for i, layer in enumerate(outputs["aux_outputs"]):
            losses |= self.layer(layer, targets, f"_{i}")
        if "enc_outputs" in outputs:
            objects = [x | {"labels": torch.zeros_like(x["labels"])} for x in targets]
            losses |= self.layer(outputs["enc_outputs"], objects, "_enc")
        return losses


class Scaled(SetCriterion):
    """One whose losses we do not know."""

    scale = 2.0


def losses_and_gradients(criterion: nn.Module, outputs: Outputs, targets: Any) -> tuple[Any, Any]:
    leaves = [x.requires_grad_() for x in torch.utils._pytree.tree_leaves(outputs)]
    losses = criterion(outputs, targets)
    return losses, torch.autograd.grad(sum(x for x in losses.values() if x.requires_grad), leaves)


@pytest.mark.parametrize("kind", [SetCriterion, Scaled])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_criteria(kind: type[SetCriterion], alpha: float | None) -> None:
    criterion, (outputs, targets) = kind(11, HungarianMatcher(alpha)), case(12 if alpha is None else 11)
    outputs["aux_outputs"] = [case(outputs["pred_logits"].shape[2])[0] for _ in range(3)]
    if alpha is not None:
        outputs["enc_outputs"] = case(11, queries=50)[0]
    expected = losses_and_gradients(criterion, outputs, targets)
    whole = kind is SetCriterion
    replacement = official_criterion.WholeCriterion if whole else official_criterion.MatchedTogether
    assert detr_fast.accelerate(criterion).replaced == [
        ("matcher", "matching in one call"),
        ("", replacement.what),
    ]
    assert {reason for _, reason in detr_fast.accelerate(criterion).skipped} == {"already accelerated"}
    got = losses_and_gradients(criterion, outputs, targets)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    copied = pickle.loads(pickle.dumps(criterion))
    assert type(copied) is type(criterion)
    detr_fast.restore(criterion)
    assert (type(criterion), type(criterion.matcher)) == (kind, HungarianMatcher)
    for x, y in zip(losses_and_gradients(criterion, outputs, targets)[1], expected[1], strict=True):
        assert torch.equal(x, y)


def test_forwards_bound_to_instances_are_left_alone() -> None:
    criterion = SetCriterion(11, HungarianMatcher())
    criterion.matcher.forward = criterion.matcher.forward
    report = detr_fast.accelerate(criterion)
    assert report.skipped == [("matcher", "another forward is bound to the instance")]
    del criterion.matcher.forward
    criterion.forward = criterion.forward
    report = detr_fast.accelerate(criterion)
    assert report.replaced == [("matcher", "matching in one call")]
    assert report.skipped == [("", "another forward is bound to the instance")]


class Grouped(SetCriterion):
    """One that scales in training alone."""

    def layer(self, outputs, targets, suffix):
        self.scale = 2.0 if self.training else 1.0
        return super().layer(outputs, targets, suffix)


def test_a_criterion_that_trains_otherwise_keeps_its_losses() -> None:
    criterion = Grouped(11, HungarianMatcher()).eval()
    detr_fast.accelerate(criterion)
    assert not isinstance(criterion, official_criterion.WholeCriterion)
    assert not criterion.training


def test_outputs_of_which_nothing_is_known_go_to_the_criterion_replaced() -> None:
    class More(SetCriterion):
        def forward(self, outputs, targets):
            return super().forward(outputs, targets) | {k: x for k, x in outputs.items() if k[:2] == "dn"}

    criterion, (outputs, targets) = More(11, HungarianMatcher()), case()
    outputs |= {"aux_outputs": [case()[0]]}
    detr_fast.accelerate(criterion)
    assert isinstance(criterion, official_criterion.WholeCriterion)
    assert "dn_meta" in criterion(outputs | {"dn_meta": torch.zeros(())}, targets)


def test_all_layers_are_matched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, (outputs, targets) = Scaled(11, HungarianMatcher()), case()
    outputs["aux_outputs"] = [case()[0] for _ in range(3)]
    detr_fast.accelerate(criterion)
    plain, calls = official_matcher.match_layers, []
    monkeypatch.setattr(official_matcher, "match_layers", lambda *x: calls.append(len(x[1])) or plain(*x))
    criterion(outputs, targets)
    assert calls == [4]
