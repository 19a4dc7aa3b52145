"""One compiled graph serves changing object counts: two graphs at most for many batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.criterion import DINOCriterion, VarifocalSetCriterion
from detr_fast.criterion.dino import dino_weights
from detr_fast.criterion.focal import focal_weights
from detr_fast.ops import class_loss, linear_assignment
from detr_fast.structures import Denoised, DenoisingGroups, MaskPredictions, PackedTargets, Predictions
from tests.criterion import test_detection, test_focal, test_masks

BATCHES = 14
Step = Callable[..., Tensor]
Make = Callable[[list[int], torch.Generator], tuple[Any, ...]]


def _assignment(num_targets: list[int], rng: torch.Generator) -> tuple[Any, ...]:
    return torch.rand(2, sum(num_targets), 12, generator=rng), num_targets


def _classes(num_targets: list[int], rng: torch.Generator) -> tuple[Any, ...]:
    query = torch.full((2, sum(num_targets)), -1)
    return torch.rand(2, 3, 12, 5, generator=rng), torch.zeros_like(query[0]), query, num_targets


def _softmax(num_targets: list[int], rng: torch.Generator) -> tuple[Any, ...]:
    predictions, targets = test_detection.random_batch(num_targets, rng)
    return predictions, PackedTargets.from_list(targets)


def _focal(num_targets: list[int], rng: torch.Generator) -> tuple[Any, ...]:
    predictions, targets = test_focal.random_batch(num_targets, rng)
    return predictions, PackedTargets.from_list(targets)


def _denoised(num_targets: list[int], rng: torch.Generator) -> tuple[Any, ...]:
    predictions, targets = _focal(num_targets, rng)
    groups = DenoisingGroups(2, max(num_targets))
    denoised = test_focal.random_predictions(3, len(num_targets), groups.queries, rng)
    known, proposed = Denoised(denoised.logits, denoised.boxes, groups), predictions.logits[:1].detach()
    encoder = Predictions(proposed, predictions.boxes[:1].detach())
    return Predictions(predictions.logits, predictions.boxes, encoder, denoised=known), targets


def _of(criterion: Any) -> Step:
    return lambda predictions, targets: criterion.total(criterion(predictions, targets))


def _of_masks(criterion: Any) -> Step:
    def step(predictions: MaskPredictions, targets: PackedTargets, draws: Any) -> Tensor:
        return criterion.total(test_masks.losses_of(criterion, (predictions, targets, draws)))

    return step


_K, _MATCHER = test_focal.K, test_focal.MATCHER
CASES: dict[str, tuple[Step, Make]] = {
    "linear_assignment": (lambda costs, num_targets: linear_assignment(costs, num_targets), _assignment),
    "class_loss": (lambda *given: class_loss(*given), _classes),
    "SetCriterion": (_of(test_detection.make_criterion()), _softmax),
    "VarifocalSetCriterion": (_of(VarifocalSetCriterion(_K, _MATCHER, focal_weights(3))), _focal),
    "DINOCriterion": (_of(DINOCriterion(_K, _MATCHER, dino_weights(3))), _denoised),
    "MaskSetCriterion": (_of_masks(test_masks.on_points()), test_masks.random_batch),
    "MaskFormerCriterion": (_of_masks(test_masks.on_maps()), test_masks.random_batch),
}


DYNAMIC = ("linear_assignment", "class_loss", "SetCriterion", "MaskSetCriterion")


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in CASES), *((name, True) for name in DYNAMIC)]
)
def test_two_graphs_serve_all_object_counts(name: str, dynamic: bool | None, rng: torch.Generator) -> None:
    step, make = CASES[name]
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counting, fullgraph=True, dynamic=dynamic)
    first = torch.randint(7, (3,), generator=rng)
    for batch in range(BATCHES):  # a number that the second batch repeats is taken for a constant
        arguments = make((2 + (first + batch) % 7).tolist(), rng)
        torch.testing.assert_close(compiled(*arguments), step(*arguments))
    assert len(graphs) <= 2
