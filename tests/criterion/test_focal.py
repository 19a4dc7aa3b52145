"""Deformable DETR's criterion against a loop over layers and images, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
from detr_fast.criterion import FocalSetCriterion, VarifocalSetCriterion, focal_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.structures import Matches, PackedTargets, Predictions
from tests.criterion.test_detection import in_float32
from tests.read_back import NoReadBack

K = 7
MATCHER = HungarianMatcher(2, 5, 2, "focal")


def random_predictions(
    layers: int, images: int, queries: int, rng: torch.Generator, encoder: Predictions | None = None
) -> Predictions:
    shape = (layers, images, queries)
    logits = 3 * torch.randn(*shape, K, generator=rng, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=rng, dtype=torch.float64) * 0.5 + 0.2
    return Predictions(logits.requires_grad_(), boxes.requires_grad_(), encoder)


def random_batch(sizes: list[int], rng: torch.Generator) -> tuple[Predictions, list[dict[str, Tensor]]]:
    targets = [
        {
            "labels": torch.randint(K, (size,), generator=rng),
            "boxes": torch.rand(size, 4, generator=rng, dtype=torch.float64) * 0.5 + 0.2,
        }
        for size in sizes
    ]
    encoder = random_predictions(1, len(sizes), 23, rng)
    return random_predictions(3, len(sizes), 9, rng, encoder), targets


def layer_ref(
    logits: Tensor,
    boxes: Tensor,
    targets: list[dict[str, Tensor]],
    alpha: float,
    gamma: float,
    varifocal: bool = False,
) -> list[Tensor]:
    """The focal or varifocal, L1 and GIoU losses of one layer."""
    num_boxes = max(1, sum(len(target["labels"]) for target in targets))
    focal = l1 = giou = logits.new_zeros(())
    outputs = {"pred_logits": logits.detach(), "pred_boxes": boxes.detach()}
    for image, (query, chosen) in enumerate(MATCHER(outputs, targets)):
        one_hot = torch.zeros_like(logits[image])
        one_hot[query, targets[image]["labels"][chosen]] = 1
        p = logits[image].sigmoid()
        right = p * one_hot + (1 - p) * (1 - one_hot)
        weight = alpha * one_hot + (1 - alpha) * (1 - one_hot)
        weight = weight * (1 - right) ** gamma
        found, wanted = boxes[image, query], targets[image]["boxes"][chosen]
        if varifocal:
            weight = alpha * p.detach() ** gamma * (1 - one_hot)
            iou = box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted))[0].diagonal().detach()
            one_hot[query, targets[image]["labels"][chosen]] = iou
            weight = weight + one_hot
        entropy = F.binary_cross_entropy_with_logits(logits[image], one_hot, reduction="none")
        focal = focal + (weight * entropy).sum()
        l1 = l1 + (found - wanted).abs().sum()
        overlap = generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted)).diagonal()
        giou = giou + (1 - overlap).sum()
    return [loss / num_boxes for loss in (focal, l1, giou)]


@pytest.mark.parametrize("sizes", [[3, 0, 5], [0, 0], [12, 1]], ids=["ragged", "empty", "more-than-queries"])
@pytest.mark.parametrize("kind", [FocalSetCriterion, VarifocalSetCriterion])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_losses_and_gradients(
    sizes: list[int], kind: type[FocalSetCriterion], alpha: float, gamma: float, rng: torch.Generator
) -> None:
    predictions, targets = random_batch(sizes, rng)
    assert predictions.encoder is not None
    criterion = kind(K, MATCHER, focal_weights(3, two_stage=True), alpha, gamma)
    losses = criterion(predictions, targets)
    objects = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
    sides = [(predictions.encoder, 0, "_enc", objects)]
    sides += [(predictions, layer, suffix, targets) for layer, suffix in enumerate(("_0", "_1", ""))]
    total = torch.zeros((), dtype=torch.float64)
    for side, layer, suffix, wanted in sides:
        varifocal = kind is VarifocalSetCriterion
        expected = layer_ref(side.logits[layer], side.boxes[layer], wanted, alpha, gamma, varifocal)
        for name, weight, value in zip(
            ("loss_ce", "loss_bbox", "loss_giou"), (2, 5, 2), expected, strict=True
        ):
            torch.testing.assert_close(losses[name + suffix], value)
            total = total + weight * value
    torch.testing.assert_close(criterion.total(losses), total)
    leaves = (predictions.logits, predictions.boxes, predictions.encoder.logits, predictions.encoder.boxes)
    found = torch.autograd.grad(criterion.total(losses), leaves)
    for mine, reference in zip(found, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(mine, reference)


def test_forms_of_input_agree(rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 0, 5], rng)
    criterion = FocalSetCriterion(K, MATCHER, focal_weights(3))
    stacked = criterion(predictions, PackedTargets.from_list(targets))
    from_dict = criterion(predictions.as_dict(), targets)
    assert stacked.keys() == from_dict.keys()
    assert all(torch.equal(stacked[name], from_dict[name]) for name in stacked)


def test_extreme_logits_stay_finite(rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 2], rng)
    logits = torch.where(predictions.logits > 0, 1e4, -1e4).float().detach().requires_grad_()
    criterion = FocalSetCriterion(K, MATCHER, focal_weights(3))
    criterion.total(criterion(Predictions(logits, predictions.boxes.float()), targets)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", [FocalSetCriterion, VarifocalSetCriterion])
def test_nothing_is_read_back(
    kind: type[FocalSetCriterion], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, targets = in_float32(*random_batch([3, 2], rng))
    packed, criterion = PackedTargets.from_list(targets), kind(K, MATCHER, focal_weights(3))
    queries = torch.arange(5)
    monkeypatch.setattr(MATCHER, "match", lambda p, _: Matches(queries.expand(len(p.logits), -1)))
    # the check of labels looks at them, on the CPU only
    monkeypatch.setattr(criterion, "_check", lambda outputs, targets: None)
    with NoReadBack():
        criterion.total(criterion(predictions, packed)).backward()
    assert predictions.logits.grad is not None


def test_wrong_input(rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 2], rng)
    with pytest.raises(ValueError, match=r"outputs: expected logits \[L, B, Q, K\] with K = 5; got"):
        FocalSetCriterion(5, MATCHER, focal_weights(3))(predictions, targets)
    with pytest.raises(ValueError, match="alpha: expected"):
        FocalSetCriterion(K, MATCHER, focal_weights(3), alpha=1.5)
    with pytest.raises(ValueError, match="gamma: expected"):
        FocalSetCriterion(K, MATCHER, focal_weights(3), gamma=float("nan"))
