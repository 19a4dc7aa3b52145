"""HungarianMatcher against a plain loop in the official style, image by image and layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_fast import HungarianMatcher, matcher
from detr_fast.matcher import MaskMatcher
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions
from tests.ops.test_box_match_cost import plain_giou

Outputs = dict[str, Tensor]
Targets = list[dict[str, Tensor]]


def random_problem(
    rng: torch.Generator, sizes: tuple[int, ...], queries: int = 20, classes: int = 8, layers: int = 1
) -> tuple[list[Outputs], Targets]:
    outputs = [
        {
            "pred_logits": 2 * torch.randn(len(sizes), queries, classes, generator=rng),
            "pred_boxes": torch.randn(len(sizes), queries, 4, generator=rng).sigmoid(),
        }
        for _ in range(layers)
    ]
    targets = [
        {
            "labels": torch.randint(classes - 1, (n,), generator=rng),
            "boxes": torch.randn(n, 4, generator=rng).sigmoid(),
        }
        for n in sizes
    ]
    return outputs, targets


def plain_cost(outputs: Outputs, target: dict[str, Tensor], image: int, focal: bool) -> Tensor:
    """[Q, T] in float64, weights 2/5/2."""
    logits, boxes = outputs["pred_logits"][image].double(), outputs["pred_boxes"][image].double()
    if focal:
        p = logits.sigmoid()
        classes = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    else:
        classes = -logits.softmax(-1)
    wanted = target["boxes"].double()
    return (
        2 * classes[:, target["labels"]] + 5 * torch.cdist(boxes, wanted, p=1) - 2 * plain_giou(boxes, wanted)
    )


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("sizes", [(3, 5), (0, 4, 0, 1), (0, 0), (25, 3, 20), (1,)])
def test_matches_as_a_plain_loop(classification: Any, sizes: tuple[int, ...], rng: torch.Generator) -> None:
    (outputs,), targets = random_problem(rng, sizes)
    matcher = HungarianMatcher(2, 5, 2, classification=classification)
    result = matcher({**outputs, "aux_outputs": "ignored"}, targets)
    assert type(result) is list
    assert len(result) == len(sizes)
    for image, ((query, target), size) in enumerate(zip(result, sizes, strict=True)):
        assert query.dtype == target.dtype == torch.int64
        assert query.device == target.device == torch.device("cpu")
        assert query.shape == target.shape == (min(20, size),)
        assert (query.diff() > 0).all()
        cost = plain_cost(outputs, targets[image], image, classification == "focal")
        rows, columns = linear_sum_assignment(cost)
        # random costs have one best assignment, up to the rounding of float32
        torch.testing.assert_close(cost[query, target].sum(), cost[rows, columns].sum(), rtol=0, atol=1e-5)
        assert len(set(target.tolist())) == len(target)


def test_all_layers_at_once_equal_one_by_one(rng: torch.Generator) -> None:
    outputs, targets = random_problem(rng, (4, 0, 30), layers=5)
    matcher = HungarianMatcher(1, 5, 2)
    packed = PackedTargets.from_list(targets)
    official = {**outputs[-1], "aux_outputs": outputs[:-1]}
    matches = matcher.match(Predictions.from_dict(official), packed)
    assert matches.query.shape == (5, 34)
    for layer, output in enumerate(outputs):
        for (a, b), (c, d) in zip(matches.as_indices(packed, layer), matcher(output, targets), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_predictions_still_match(bad: float, rng: torch.Generator) -> None:
    (outputs,), targets = random_problem(rng, (6, 20, 30, 4))
    outputs["pred_logits"][0] = bad
    outputs["pred_boxes"][1, ::2] = bad
    outputs["pred_logits"][2, 5, 3] = bad
    outputs["pred_boxes"][3, :, 2] = bad
    for classification in ("softmax", "focal"):
        for (query, target), size in zip(
            HungarianMatcher(1, 5, 2, classification)(outputs, targets), (6, 20, 30, 4), strict=True
        ):
            assert len(query) == len(query.unique()) == len(target.unique()) == min(20, size)
            assert query.min() >= 0
            assert query.max() < 20
            assert target.max() < size


def test_predictions_that_need_gradients(rng: torch.Generator) -> None:
    (outputs,), targets = random_problem(rng, (3, 2))
    expected = HungarianMatcher()(outputs, targets)
    leaves = {name: value.requires_grad_() for name, value in outputs.items()}
    for (a, b), (c, d) in zip(HungarianMatcher()(leaves, targets), expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_defaults_and_repr() -> None:
    matcher = HungarianMatcher()
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (1, 1, 1)
    assert "cost_class=1" in repr(matcher)
    assert not list(matcher.parameters())
    assert not matcher.state_dict()


def test_bad_input(rng: torch.Generator) -> None:
    (outputs,), targets = random_problem(rng, (3, 2))
    matcher = HungarianMatcher()
    with pytest.raises(ValueError, match="expected at least one other than 0; got 0 for each"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="classification: expected 'softmax' or 'focal'; got 'sigmoid'"):
        HungarianMatcher(classification="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outputs: expected the keys"):
        matcher({"pred_logits": outputs["pred_logits"]}, targets)
    with pytest.raises(
        ValueError, match="num_targets: expected one target count for each of B = 2 images; got 1"
    ):
        matcher(outputs, targets[:1])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected the keys"):
        matcher(outputs, [{"labels": targets[0]["labels"]}, targets[1]])
    with pytest.raises(ValueError, match=r"boxes: expected \[1, 2, 20, 4\]"):
        matcher({**outputs, "pred_boxes": outputs["pred_boxes"][..., :3]}, targets)
    with pytest.raises(ValueError, match=r"target_labels: .*K = 8; got 8"):
        matcher(outputs, [{**targets[0], "labels": torch.tensor([0, 8, 1])}, targets[1]])


def random_masks_problem(
    rng: torch.Generator, sizes: tuple[int, ...], layers: int = 3
) -> tuple[MaskPredictions, PackedTargets]:
    shape = (layers, len(sizes), 6)
    predictions = MaskPredictions(
        torch.randn(*shape, 5, generator=rng), 3 * torch.randn(*shape, 5, 7, generator=rng)
    )
    targets = [
        {
            "labels": torch.randint(4, (n,), generator=rng),
            "boxes": torch.zeros(n, 4),
            "masks": torch.rand(n, 20, 28, generator=rng) > 0.5,
        }
        for n in sizes
    ]
    return predictions, PackedTargets.from_list(targets)


def test_mask_matcher_some_layers_at_a_time(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The criterion's tests compare costs and matches with a plain loop; here pieces and the whole."""
    predictions, targets = random_masks_problem(rng, (4, 0, 8), layers=5)
    points = torch.rand(5, 3, 50, 2, generator=rng)
    mask_matcher = MaskMatcher(num_points=50)
    whole = mask_matcher.match(predictions, targets, points).query
    assert whole.shape == (5, 12)
    for step in (1, 2):
        monkeypatch.setattr(matcher, "_VALUES_AT_ONCE", step * (3 * 6 + 12) * 50)
        assert torch.equal(mask_matcher.match(predictions, targets, points).query, whole)
    alone = mask_matcher.match(predictions.last(), targets, points[-1:]).query
    assert torch.equal(alone[0], whole[-1])


@pytest.mark.parametrize("num_points", [0, 50])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_mask_matcher_survives_non_finite_masks(num_points: int, bad: float, rng: torch.Generator) -> None:
    predictions, targets = random_masks_problem(rng, (4, 8, 2))
    predictions.masks[:, 0] = bad
    predictions.masks[0, 2, 3] = bad
    mask_matcher = MaskMatcher(1, 20, 1, num_points=num_points, mask_cost="focal")
    for layer in mask_matcher.match(predictions, targets).query:
        for query, size in zip(layer.split(targets.num_targets), targets.num_targets, strict=True):
            matched = query[query >= 0]
            assert len(matched) == len(matched.unique()) == min(size, 6)


def test_mask_matcher_bad_input(rng: torch.Generator) -> None:
    predictions, targets = random_masks_problem(rng, (2, 3))
    assert "num_points=12544, mask_cost='bce'" in repr(MaskMatcher())
    with pytest.raises(ValueError, match="expected at least one other than 0; got 0 for each"):
        MaskMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="mask_cost: expected 'bce' or 'focal'; got 'l1'"):
        MaskMatcher(mask_cost="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_points: expected an integer >= 0; got -1"):
        MaskMatcher(num_points=-1)
    with pytest.raises(
        ValueError, match=r"points: expected \[L, B, P, 2\] with L, B = 3, 2; got \[3, 1, 9, 2\]"
    ):
        MaskMatcher().match(predictions, targets, torch.rand(3, 1, 9, 2))
    with pytest.raises(ValueError, match="got targets without masks"):
        MaskMatcher().match(predictions, replace(targets, masks=None))
    with pytest.raises(ValueError, match="outputs: expected the keys 'pred_logits' and 'pred_masks'"):
        MaskMatcher()({"pred_logits": predictions.logits[0]}, [])
