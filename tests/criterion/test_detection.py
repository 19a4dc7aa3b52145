"""The set criterion against a loop over layers and images, in float64."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.ops import OPERATORS, use_backend
from detr_fast.structures import PackedTargets, Predictions
from tests.ops import interpreter
from tests.ops.simulated import labels, simulated
from tests.read_back import NoReadBack

K = 7


def random_batch(
    sizes: list[int], rng: torch.Generator, layers: int = 3, queries: int = 9
) -> tuple[Predictions, list[dict[str, Tensor]]]:
    shape = (layers, len(sizes), queries)
    logits = 3 * torch.randn(*shape, K + 1, generator=rng, dtype=torch.float64)
    boxes = torch.rand(*shape, 4, generator=rng, dtype=torch.float64) * 0.5 + 0.2
    targets = [
        {
            "labels": torch.randint(K, (size,), generator=rng),
            "boxes": torch.rand(size, 4, generator=rng, dtype=torch.float64) * 0.5 + 0.2,
        }
        for size in sizes
    ]
    return Predictions(logits.requires_grad_(), boxes.requires_grad_()), targets


def make_criterion(layers: int = 3, **options) -> SetCriterion:
    return SetCriterion(K, HungarianMatcher(1, 5, 2), detection_weights(layers), **options)


def pairs_ref(logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest pairs (query, target) of one image."""
    l1 = torch.cdist(boxes, target["boxes"], p=1)
    giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target["boxes"]))
    return linear_sum_assignment(5 * l1 - 2 * giou - logits.softmax(-1)[:, target["labels"]])


def losses_ref(predictions: Predictions, targets: list[dict[str, Tensor]], eos: float) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    num_boxes = max(1, sum(len(target["labels"]) for target in targets))
    layers = len(predictions.logits)
    for layer in range(layers):
        name = "" if layer == layers - 1 else f"_{layer}"
        ce = l1 = giou = cardinality = torch.zeros((), dtype=torch.float64)
        weight_sum = right = matched = 0.0
        for b, target in enumerate(targets):
            logits, boxes = predictions.logits[layer, b], predictions.boxes[layer, b]
            query, index = pairs_ref(logits.detach(), boxes.detach(), target)
            classes = torch.full((len(logits),), K)
            classes[query] = target["labels"][index]
            weight = torch.where(classes == K, eos, 1.0).double()
            ce = ce + (weight * F.cross_entropy(logits, classes, reduction="none")).sum()
            weight_sum += float(weight.sum())
            for q, t in zip(query, index, strict=True):
                wanted = target["boxes"][t]
                l1 = l1 + (boxes[q] - wanted).abs().sum()
                corners = box_cxcywh_to_xyxy(torch.stack((boxes[q], wanted)))
                giou = giou + 1 - generalized_box_iou(corners[:1], corners[1:])[0, 0]
                right += float(logits[q].argmax() == target["labels"][t])
                matched += 1
            detected = (logits.argmax(-1) != K).sum()
            cardinality = cardinality + (detected - len(target["labels"])).abs() / len(targets)
        losses[f"loss_ce{name}"] = ce / weight_sum
        losses[f"loss_bbox{name}"] = l1 / num_boxes
        losses[f"loss_giou{name}"] = giou / num_boxes
        losses[f"cardinality_error{name}"] = cardinality
    losses["class_error"] = torch.tensor(100 - 100 * right / max(1.0, matched), dtype=torch.float64)
    return losses


RAGGED = {
    "ragged": [3, 0, 5],
    "one": [4],
    "no-targets": [0, 0],
    "more-targets-than-queries": [13, 2],
    "as-many": [9, 9],
}


@pytest.mark.parametrize("sizes", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("layers", [1, 3])
def test_losses_and_gradients(sizes: list[int], layers: int, rng: torch.Generator) -> None:
    predictions, targets = random_batch(sizes, rng, layers)
    criterion = make_criterion(layers, eos_coef=0.3)
    found, expected = criterion(predictions, targets), losses_ref(predictions, targets, 0.3)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, check_dtype="error" not in name)
    expected_total = sum(expected[name] * weight for name, weight in criterion.weight_dict.items())
    total = criterion.total(found)
    torch.testing.assert_close(total, expected_total)
    inputs = (predictions.logits, predictions.boxes)
    for mine, reference in zip(
        torch.autograd.grad(total, inputs),
        torch.autograd.grad(expected_total, inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


def test_forms_of_input_agree(rng: torch.Generator) -> None:
    predictions, targets = random_batch([2, 0, 4], rng)
    criterion = make_criterion()
    expected = criterion(predictions, PackedTargets.from_list(targets))
    for outputs in (predictions, predictions.as_dict()):
        found = criterion(outputs, targets)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    last = criterion(predictions.as_dict(aux=False), targets)
    assert set(last) == {"loss_ce", "class_error", "loss_bbox", "loss_giou", "cardinality_error"}
    assert all(torch.equal(last[name], expected[name]) for name in last)


def test_subset_of_losses(rng: torch.Generator) -> None:
    predictions, targets = random_batch([2, 1], rng)
    assert set(make_criterion(losses=["boxes"])(predictions, targets)) == {
        f"{name}{suffix}" for name in ("loss_bbox", "loss_giou") for suffix in ("", "_0", "_1")
    }
    cardinality = make_criterion(losses=["cardinality"])
    losses = cardinality(predictions, targets)
    assert set(losses) == {"cardinality_error", "cardinality_error_0", "cardinality_error_1"}
    with pytest.raises(ValueError, match=r"losses: expected some of .*loss_ce.*; got \['cardinality_error'"):
        cardinality.total(losses)


def test_default_weights() -> None:
    assert detection_weights(2) == {
        "loss_ce": 1,
        "loss_bbox": 5,
        "loss_giou": 2,
        "loss_ce_0": 1,
        "loss_bbox_0": 5,
        "loss_giou_0": 2,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_of_losses(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Half-precision predictions give float32 losses, equal to those of the widened predictions."""
    predictions, targets = random_batch([2, 3], rng)
    half = Predictions(predictions.logits.detach().to(dtype), predictions.boxes.detach().to(dtype))
    targets = [{"labels": t["labels"], "boxes": t["boxes"].float()} for t in targets]
    found = make_criterion()(half, targets)
    expected = make_criterion()(Predictions(half.logits.float(), half.boxes.float()), targets)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_nan_predictions_reach_the_loss(where: str, rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 2], rng)
    with torch.no_grad():
        getattr(predictions, where)[0] = torch.nan
    losses = make_criterion()(predictions, targets)
    poisoned = "loss_ce_0" if where == "logits" else "loss_bbox_0"
    assert losses[poisoned].isnan()
    assert all(value.isfinite() for name, value in losses.items() if not name.endswith("_0"))
    assert make_criterion().total(losses).isnan()


@pytest.mark.parametrize("label", [-1, K, K + 5])
def test_labels_out_of_range(label: int, rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 2], rng)
    targets[1]["labels"][0] = label
    with pytest.raises(ValueError, match=rf"targets: expected labels in \[0, {K}\); got {label}"):
        make_criterion()(predictions, targets)


@pytest.mark.parametrize("scale", [1.0, 640.0])
def test_boxes_in_another_format(scale: float, rng: torch.Generator) -> None:
    predictions, targets = random_batch([5, 5], rng)
    for target in targets:
        low = torch.rand(5, 2, generator=rng) * 0.05 + 0.7  # read as sizes, they reach out
        target["boxes"] = torch.cat((low, low + 0.25), dim=1) * scale
    found = "corners .* in pixels" if scale > 1 else "relative corners"
    with pytest.raises(
        ValueError, match=rf"targets: expected boxes \(cx, cy, w, h\) .*; got .* like {found}"
    ):
        make_criterion()(predictions, targets)


def test_wrong_input(rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 2], rng)
    criterion = make_criterion()
    with pytest.raises(ValueError, match="targets: expected B = 2 images as outputs; got 1"):
        criterion(predictions, targets[:1])
    with pytest.raises(ValueError, match=rf"logits \[L, B, Q, K \+ 1\] with K = {K}; got \[3, 2, 9, {K}\]"):
        criterion(Predictions(predictions.logits[..., 1:], predictions.boxes), targets)
    with pytest.raises(ValueError, match=r"boxes \[3, 2, 9, 4\]; got \[3, 2, 8, 4\]"):
        criterion(Predictions(predictions.logits, predictions.boxes[:, :, 1:]), targets)
    known = "losses: expected some of labels, boxes, cardinality, masks; got 'mask'"
    with pytest.raises(ValueError, match=known):
        make_criterion(losses=["labels", "mask"])
    with pytest.raises(ValueError, match="num_classes: expected at least 1; got 0"):
        SetCriterion(0, HungarianMatcher(1, 5, 2), {})


def test_parts_of_a_joined_batch_add_up(rng: torch.Generator) -> None:
    predictions, targets = random_batch([3, 0, 5, 1], rng)
    criterion = make_criterion()
    whole = criterion(predictions, targets)
    parts = [
        criterion(
            Predictions(predictions.logits[:, part], predictions.boxes[:, part]),
            targets[part],
            joined_num_targets=[3, 0, 5, 1],
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name in criterion.weight_dict:
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name])


@pytest.mark.parametrize("sizes", [[2, 2], [0, 0]])
def test_normalisers_are_means_over_ranks(
    sizes: list[int], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another rank had 6 targets, and class weights that add up to 4."""
    predictions, targets = random_batch(sizes, rng)
    criterion = make_criterion()
    alone = criterion(predictions, targets)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda totals: totals.add_(torch.tensor([6, 4])))
    together = criterion(predictions, targets)
    boxes = sum(sizes)
    weight = boxes + 0.1 * (2 * 9 - boxes)
    for name, mine, mean in (
        ("loss_bbox", max(1, boxes), (boxes + 6) / 2),
        ("loss_giou_1", max(1, boxes), (boxes + 6) / 2),
        ("loss_ce_0", weight, (weight + 4) / 2),
    ):
        torch.testing.assert_close(together[name] * mean, alone[name] * mine, rtol=1e-6, atol=0)


USED = ("box_match_cost", "linear_assignment", "class_loss", "box_loss")


def in_float32(
    predictions: Predictions, targets: list[dict[str, Tensor]]
) -> tuple[Predictions, list[dict[str, Tensor]]]:
    """What the fast backends take: the reference looks at labels and queries."""
    leaves = (x.detach().float().requires_grad_() for x in (predictions.logits, predictions.boxes))
    return Predictions(*leaves), targets


def test_nothing_is_read_back(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = in_float32(*random_batch([2, 0, 12], rng))
    packed, criterion = PackedTargets.from_list(targets), make_criterion()
    matches = criterion.matcher.match(predictions, packed)
    monkeypatch.setattr(criterion.matcher, "match", lambda predictions, targets: matches)
    # the check of labels looks at them, on the CPU only
    monkeypatch.setattr(criterion, "_check", lambda outputs, targets: None)
    with NoReadBack():
        criterion.total(criterion(predictions, packed)).backward()
    assert predictions.logits.grad is not None


@pytest.mark.parametrize("simulation", ["host", "triton"])
def test_nothing_is_read_back_by_gpu_backends(simulation: str, rng: torch.Generator) -> None:
    """From logits to gradients, matching included, with the GPU backends executed without a GPU."""
    predictions, targets = in_float32(*random_batch([2, 0, 12], rng, layers=1))
    packed, criterion = PackedTargets.from_list(targets), make_criterion(layers=1)
    expected = criterion.total(criterion(predictions, packed))
    operators = [o for o in OPERATORS if o.name in USED and simulation in labels(o)]
    if len(operators) < len(USED):
        pytest.skip(f"no simulation {simulation} here: {interpreter.why_not()}")
    with ExitStack() as stack:
        for operator in operators:
            name = stack.enter_context(simulated(operator, simulation))
            stack.enter_context(use_backend(**{operator.name: name}))
        criterion.matcher.match(predictions, packed)  # modules are imported by a first call
        stack.enter_context(NoReadBack())
        with patch.object(criterion, "_check"):  # looks at the labels, on the CPU only
            total = criterion.total(criterion(predictions, packed))
        total.backward()
    torch.testing.assert_close(total, expected)
    assert predictions.logits.grad is not None


def test_compiles_as_one_graph(rng: torch.Generator) -> None:
    predictions, targets = random_batch([2, 0, 5], rng)
    packed, criterion = PackedTargets.from_list(targets), make_criterion()

    def step(logits: Tensor, boxes: Tensor) -> Tensor:
        return criterion.total(criterion(Predictions(logits, boxes), packed))

    inputs = (predictions.logits, predictions.boxes)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*inputs), step(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, e)
