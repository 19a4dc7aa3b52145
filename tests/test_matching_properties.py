"""Matchers and criteria with whatever training brings: empty and crowded images, NaN, any dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detr_fast.criterion import (
    FocalSetCriterion,
    MaskFormerCriterion,
    MaskSetCriterion,
    SetCriterion,
    detection_weights,
    focal_weights,
    mask_weights,
)
from detr_fast.criterion.base import StackedCriterion
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions
from tests.conftest import SEED

K, LAYERS, SIZE = 4, 2, (12, 16)
POINTS = 20
CRITERIA: dict[str, Callable[[], StackedCriterion]] = {
    "softmax": lambda: SetCriterion(
        K,
        HungarianMatcher(1, 5, 2),
        detection_weights(LAYERS, masks=True),
        losses=SetCriterion.known_losses,
    ),
    "focal": lambda: FocalSetCriterion(K, HungarianMatcher(2, 5, 2, "focal"), focal_weights(LAYERS)),
    "points": lambda: MaskSetCriterion(
        K, MaskMatcher(num_points=POINTS), mask_weights(LAYERS), num_points=POINTS
    ),
    "maps": lambda: MaskFormerCriterion(
        K, MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal"), mask_weights(LAYERS, 1, 20, 1)
    ),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ODD = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 6e4)


@dataclass(frozen=True)
class Batch:
    """Predictions of every kind, as leaves, and targets."""

    logits: Tensor
    boxes: Tensor
    masks: Tensor
    targets: list[dict[str, Tensor]]

    def predictions(self, kind: str) -> Predictions | MaskPredictions:
        logits = self.logits[..., : K if kind == "focal" else K + 1]
        if kind in ("points", "maps"):
            return MaskPredictions(logits, self.masks)
        return Predictions(logits, self.boxes, masks=self.masks[-1:])

    def leaves(self, kind: str) -> list[Tensor]:
        box = [] if kind in ("points", "maps") else [self.boxes]
        return [self.logits, *box, *([] if kind == "focal" else [self.masks])]


@st.composite
def batches(draw: st.DrawFn, odd: bool) -> Batch:
    counts = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    queries = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(DTYPES))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(LAYERS, len(counts), queries, *shape, generator=rng) * scale
        for bad in draw(st.lists(st.sampled_from(ODD), max_size=2)) if odd else ():
            place = torch.rand(x.shape, generator=rng)
            share = draw(st.sampled_from((0.01, 0.3, 1.0)))
            x = x.masked_fill(place < share, bad)
        return x.to(dtype)

    boxes = values(4).sigmoid() if not odd else values(4)
    labels = draw(st.sampled_from((torch.int64, torch.int32, torch.uint8)))
    targets = [
        {
            "labels": torch.randint(K, (count,), generator=rng).to(labels),
            "boxes": torch.rand(count, 4, generator=rng) * 0.5 + 0.2,
            "masks": torch.rand(count, *SIZE, generator=rng) > draw(st.sampled_from((0.0, 0.5, 1.0))),
        }
        for count in counts
    ]
    leaves = [
        x.detach().requires_grad_()
        for x in (values(K + 1, scale=3.0), boxes, values(SIZE[0] // 4, SIZE[1] // 4, scale=3.0))
    ]
    return Batch(*leaves, targets)


def assert_assigns(query: Tensor, targets: PackedTargets, queries: int) -> None:
    """min(T, Q) targets of each image have a query, each one of its own."""
    assert query.shape == (LAYERS, len(targets.labels))
    for layer in query:
        for image, count in zip(layer.split(targets.num_targets), targets.num_targets, strict=True):
            matched = image[image >= 0]
            assert len(matched) == len(matched.unique()) == min(count, queries)
            assert (image >= -1).all()
            assert (image < queries).all()


def totals(kind: str, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(SEED)  # the points
    criterion = CRITERIA[kind]()
    losses = criterion(batch.predictions(kind), batch.targets)
    return {**losses, "total": criterion.total(losses)}


@pytest.mark.parametrize("kind", CRITERIA)
@given(batches(odd=False))
@settings(max_examples=25, deadline=None)
def test_finite_predictions_give_finite_losses(kind: str, batch: Batch) -> None:
    criterion, targets = CRITERIA[kind](), PackedTargets.from_list(batch.targets)
    predictions = batch.predictions(kind)
    assert_assigns(criterion.matcher.match(predictions, targets).query, targets, predictions.logits.shape[2])
    losses = totals(kind, batch)
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert loss.isfinite(), name
        if name in criterion.weight_dict:
            assert loss.dtype == torch.promote_types(batch.logits.dtype, torch.float32), name
    grads = torch.autograd.grad(losses["total"], batch.leaves(kind), allow_unused=True)
    for leaf, grad in zip(batch.leaves(kind), grads, strict=True):
        assert grad is None or (grad.dtype == leaf.dtype and grad.isfinite().all())
    if not sum(targets.num_targets):
        # nothing but classes to learn
        assert all(losses[n] == 0 for n in losses if n.startswith(("loss_bbox", "loss_giou", "loss_mask")))
        assert not any(grad.any() for grad in grads[1:] if grad is not None)
        assert grads[0] is not None
        assert grads[0].any()


@pytest.mark.parametrize("kind", CRITERIA)
@given(batches(odd=True))
@settings(max_examples=25, deadline=None)
def test_any_predictions_match_and_never_raise(kind: str, batch: Batch) -> None:
    criterion, targets = CRITERIA[kind](), PackedTargets.from_list(batch.targets)
    predictions = batch.predictions(kind)
    assert_assigns(criterion.matcher.match(predictions, targets).query, targets, predictions.logits.shape[2])
    losses = totals(kind, batch)
    if batch.logits[..., : predictions.logits.shape[-1]].isnan().any():
        assert losses["total"].isnan(), "NaN classes hide in no loss"
    torch.autograd.grad(losses["total"], batch.leaves(kind), allow_unused=True)


@pytest.mark.parametrize("kind", [kind for kind in CRITERIA if kind != "points"])  # drawn image by image
@given(batches(odd=False))
@settings(max_examples=10, deadline=None)
def test_order_of_images_does_not_matter(kind: str, batch: Batch) -> None:
    """Sums over images: nothing of one enters another."""
    flipped = replace(
        batch,
        **{name: getattr(batch, name).flip(1) for name in ("logits", "boxes", "masks")},
        targets=batch.targets[::-1],
    )
    there, back = totals(kind, batch), totals(kind, flipped)
    for name, loss in there.items():
        torch.testing.assert_close(back[name], loss, rtol=1e-4, atol=1e-4, msg=name)


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("labels", torch.zeros(2), TypeError, r"targets\[1\]\['labels'\]: expected integers; got torch.float32"),
    ("labels", torch.zeros(2, dtype=torch.bool), TypeError, "expected integers; got torch.bool"),
    ("labels", torch.tensor([0, K]), ValueError, rf"labels in \[0, {K}\); got {K}"),
    ("labels", torch.tensor([-1, 0]), ValueError, rf"labels in \[0, {K}\); got -1"),
    ("labels", torch.zeros(2, 1, dtype=torch.int64), ValueError, r"expected labels \[T\] and boxes \[T, 4\]"),
    ("boxes", torch.zeros(2, 4, dtype=torch.int64), TypeError, r"\['boxes'\]: expected a float dtype"),
    ("boxes", torch.zeros(2, 5), ValueError, r"expected labels \[T\] and boxes \[T, 4\]"),
    ("boxes", torch.zeros(3, 4), ValueError, r"expected labels \[T\] and boxes \[T, 4\]"),
    ("masks", torch.zeros(2, *SIZE), TypeError, r"\['masks'\]: expected bool \(or uint8"),
    ("masks", torch.zeros(3, *SIZE, dtype=torch.bool), ValueError, r"\['masks'\]: expected \[T, h, w\]"),
]


@pytest.mark.parametrize(("key", "value", "error", "message"), WRONG)
@pytest.mark.parametrize("kind", CRITERIA)
def test_wrong_targets(
    kind: str, key: str, value: Tensor, error: type[Exception], message: str, rng: torch.Generator
) -> None:
    shape = (LAYERS, 2, 5)
    good = {
        "labels": torch.zeros(2, dtype=torch.int64),
        "boxes": torch.full((2, 4), 0.5),
        "masks": torch.ones(2, *SIZE, dtype=torch.bool),
    }
    logits, boxes = torch.randn(*shape, K + 1, generator=rng), torch.rand(*shape, 4, generator=rng)
    masks = torch.randn(*shape, SIZE[0] // 4, SIZE[1] // 4, generator=rng)
    batch = Batch(logits, boxes, masks, [good, {**good, key: value}])
    with pytest.raises(error, match=message):
        totals(kind, batch)
