"""CUDA kernels, executed on the host, beyond what one launch takes and where a GPU cannot look at values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.ops import OPERATORS, box_loss, box_match_cost, class_loss, mask_match_cost
from tests.ops.simulated import simulated

OPERATOR = {operator.name: operator for operator in OPERATORS}
IMAGES = 300  # a launch takes 256
pytestmark = pytest.mark.usefixtures("_poisoned")


@pytest.fixture
def _poisoned() -> None:
    torch.use_deterministic_algorithms(True)


def _inputs(rng: torch.Generator) -> dict[str, Any]:
    num_targets = [b % 3 for b in range(IMAGES)]
    total, queries = sum(num_targets), 4
    return {
        "logits": torch.randn(2, IMAGES, queries, 5, generator=rng),
        "boxes": torch.rand(2, IMAGES, queries, 4, generator=rng),
        "mask_values": torch.randn(2, IMAGES, queries, 3, generator=rng),
        "labels": torch.randint(4, (total,), generator=rng),
        "target_boxes": torch.rand(total, 4, generator=rng),
        "target_values": torch.rand(total, 3, generator=rng),
        # the first queries of each image, backwards
        "query": torch.tensor([t for n in num_targets for t in reversed(range(n))]).expand(2, -1),
        "num_targets": num_targets,
    }


def test_losses_of_more_images_than_a_launch_takes(rng: torch.Generator) -> None:
    given = _inputs(rng)
    rest = (given["query"], given["num_targets"])
    calls = [
        (box_loss, given["boxes"], (given["target_boxes"], *rest)),
        (class_loss, given["logits"], (given["labels"], *rest)),
    ]
    for function, values, arguments in calls:

        def value_and_gradient(
            backend: str, f: Any = function, x: Tensor = values, a: Any = arguments
        ) -> Any:
            leaf = x.clone().requires_grad_()
            out = f(leaf, *a, backend=backend)
            return out.detach(), torch.autograd.grad(out, leaf, torch.tensor([1.0, -2.0]).expand_as(out))[0]

        expected = value_and_gradient("reference")
        with simulated(OPERATOR[function.__name__], "host") as pin:
            torch.testing.assert_close(value_and_gradient(pin), expected)


def test_costs_of_more_images_than_a_launch_takes(rng: torch.Generator) -> None:
    given = _inputs(rng)
    given["logits"][0, 280, 1] = torch.nan  # the second launch repairs too
    boxes = (given["logits"], given["boxes"], given["labels"], given["target_boxes"], given["num_targets"])
    masks = (
        given["logits"],
        given["mask_values"],
        given["labels"],
        given["target_values"],
        given["num_targets"],
    )
    for function, arguments in ((box_match_cost, boxes), (mask_match_cost, masks)):
        expected = function(*arguments, backend="reference")
        with simulated(OPERATOR[function.__name__], "host") as pin:
            torch.testing.assert_close(function(*arguments, backend=pin), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_that_is_no_class_makes_the_loss_nan(
    classification: str, label: int, rng: torch.Generator
) -> None:
    logits = torch.randn(2, 2, 40, 5, generator=rng, requires_grad=True)
    labels, query = torch.tensor([0, label, 1]), torch.tensor([[35, 2, 0], [1, 39, 3]])
    with simulated(OPERATOR["class_loss"], "host") as pin:
        loss = class_loss(logits, labels, query, [2, 1], classification=classification, backend=pin)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().all()
    assert gradient[:, 0].isnan().all()  # of the image with that label
    assert gradient[:, 1].isfinite().all()


def test_queries_that_do_not_exist_count_as_none(rng: torch.Generator) -> None:
    boxes = torch.rand(1, 1, 3, 4, generator=rng, requires_grad=True)
    logits = torch.randn(1, 1, 3, 5, generator=rng, requires_grad=True)
    labels, target_boxes = torch.tensor([0, 1, 2, 3]), torch.rand(4, 4, generator=rng)
    found, none = torch.tensor([[1, 3, -2, 2**40]]), torch.tensor([[1, -1, -1, -1]])
    with simulated(OPERATOR["box_loss"], "host") as pin:
        actual = box_loss(boxes, target_boxes, found, [4], backend=pin)
        (gradient,) = torch.autograd.grad(actual.sum(), boxes)
    expected = box_loss(boxes, target_boxes, none, [4], backend="reference")
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), boxes)[0])
    with simulated(OPERATOR["class_loss"], "host") as pin:
        actual = class_loss(logits, labels, found, [4], backend=pin)
    torch.testing.assert_close(actual, class_loss(logits, labels, none, [4], backend="reference"))
