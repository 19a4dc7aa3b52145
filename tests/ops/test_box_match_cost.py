"""box_match_cost beyond the contract: the official formulas, non-finite inputs, degenerate boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detr_fast.ops import box_match_cost, linear_assignment
from detr_fast.ops.box_match_cost import OPERATOR
from tests.ops.cases.box_match_cost import make
from tests.ops.simulated import labels

BACKENDS = [n for n, why in OPERATOR.explain(torch.device("cpu"), torch.float32).items() if why is None]
backends = pytest.mark.parametrize("backend", [*BACKENDS, *labels(OPERATOR)], indirect=True)
class_costs = pytest.mark.parametrize("classification", ["softmax", "focal"])


def corners(boxes: Tensor) -> Tensor:
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def plain_giou(a: Tensor, b: Tensor) -> Tensor:
    """As published, from corners: rows of a against rows of b."""
    a, b = corners(a)[:, None], corners(b)[None]
    inter = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    return inter / union - (hull - union) / hull


@backends
@class_costs
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_equals_the_official_formulas(
    backend: str, classification: str, gamma: float, rng: torch.Generator
) -> None:
    inputs = make(rng, (6, 0, 3), 40, 20, classification=classification)
    alpha, weights = 0.3, {"w_class": 2.0, "w_l1": 3.0, "w_giou": 4.0}
    narrow = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }
    actual = box_match_cost(**narrow, **weights, alpha=alpha, gamma=gamma, backend=backend)
    logits, boxes = inputs["logits"].flatten(0, 1), inputs["boxes"].flatten(0, 1)
    labels, target_boxes = inputs["target_labels"], inputs["target_boxes"]
    if classification == "softmax":
        classes = -logits.softmax(-1)[:, labels]
    else:
        p = logits.sigmoid()
        positive = alpha * ((1 - p) ** gamma) * (-(p + 1e-8).log())
        negative = (1 - alpha) * (p**gamma) * (-(1 - p + 1e-8).log())
        classes = positive[:, labels] - negative[:, labels]
    cost = 2 * classes + 3 * torch.cdist(boxes, target_boxes, p=1) - 4 * plain_giou(boxes, target_boxes)
    blocks = cost.view(3, 40, -1).split(inputs["num_targets"], -1)
    expected = torch.cat([block[b].T for b, block in enumerate(blocks)])
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)


@backends
@class_costs
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_pairs_cost_more_than_any_assignment(
    backend: str, classification: str, bad: float, rng: torch.Generator
) -> None:
    """Image 0 has spoilt queries and targets, image 1 none, image 2 nothing else; layer 1 is clean."""
    inputs = make(rng, (5, 4, 3), 30, 7, layers=2, classification=classification)
    inputs = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }
    clean = box_match_cost(**inputs, backend=backend)
    inputs["boxes"][0, 0, 3, 1] = bad
    inputs["boxes"][0, 0, 29, 2] = bad
    inputs["boxes"][0, 2, :, 0] = bad
    inputs["logits"][0, 0, 11] = torch.nan
    cost = box_match_cost(**inputs, backend=backend)
    torch.testing.assert_close(cost[1], clean[1], rtol=0, atol=0)
    torch.testing.assert_close(cost[0, 5:9], clean[0, 5:9], rtol=0, atol=0)
    assert (cost[0, 9:] == 0).all()
    block = cost[0, :5].double()
    spoilt = torch.zeros(30, dtype=torch.bool)
    spoilt[[3, 11, 29]] = True
    finite, penalty = block[:, ~spoilt], block[:, spoilt]
    torch.testing.assert_close(finite, clean[0, :5, ~spoilt].double(), rtol=0, atol=0)
    assert penalty.isfinite().all()
    assert (penalty == penalty[0, 0]).all()
    assert penalty[0, 0] > 5 * finite.max() - 4 * finite.min()
    query = linear_assignment(cost, inputs["num_targets"])
    assert not spoilt[query[0, :5]].any()


@backends
@pytest.mark.parametrize("size", [0.0, 1.0, -1e10, 1e30])
def test_penalty_is_strictly_larger_and_finite(backend: str, size: float) -> None:
    """Equal costs, negative ones and ones near the largest float leave no room for a careless margin."""
    logits = torch.zeros(1, 3, 1)
    boxes = torch.full((1, 3, 4), 0.5)
    boxes[0, 1, 0] = torch.nan
    cost = box_match_cost(
        logits,
        boxes,
        torch.zeros(2, dtype=torch.int64),
        torch.full((2, 4), 0.5),
        [2],
        w_class=size,
        w_giou=0,
        backend=backend,
    )
    assert cost.isfinite().all()
    assert cost[:, 1].min() > 2 * cost[:, [0, 2]].max() - cost[:, [0, 2]].min()


@backends
def test_infinite_logits(backend: str) -> None:
    """-inf is a probability of zero; a row of it, or +inf, has no softmax. The focal term takes both."""
    boxes = torch.full((1, 4, 4), 0.5)
    logits = torch.zeros(1, 4, 3)
    logits[0, 1, 0], logits[0, 2, :], logits[0, 3, 2] = -torch.inf, -torch.inf, torch.inf
    label, target = torch.tensor([0]), torch.full((1, 4), 0.5)
    cost = box_match_cost(logits, boxes, label, target, [1], w_l1=0, w_giou=0, backend=backend)[0]
    torch.testing.assert_close(cost[:2], torch.tensor([-1 / 3, 0.0]))
    assert (cost[2:] == cost[2]).all()
    assert cost[2].isfinite()
    assert cost[2] > 0
    focal = box_match_cost(
        logits, boxes, label, target, [1], classification="focal", w_l1=0, w_giou=0, backend=backend
    )
    eps = -torch.tensor(1e-8).log()
    torch.testing.assert_close(focal[0, 2], 0.25 * eps)


@backends
@pytest.mark.parametrize(
    ("box", "target", "giou"),
    [
        ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), 1.0),
        ((0.5, 0.5, 1e-7, 1e-7), (0.5, 0.5, 1e-7, 1e-7), 1.0),
        ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), 0.0),
        ((0.4, 0.5, 0.0, 0.0), (0.5, 0.6, 0.0, 0.0), -1.0),
        ((0.4, 0.5, 0.0, 0.1), (0.5, 0.5, 0.0, 0.1), -1.0),
        ((0.5, 0.4, 0.0, 0.1), (0.5, 0.6, 0.0, 0.1), 0.0),
        ((0.5, 0.5, -0.1, 0.2), (0.5, 0.5, 0.2, 0.2), 0.0),
        ((0.5, 0.5, 0.1, 0.2), (0.5, 0.5, 0.2, -0.2), -0.5),
        ((0.5, 0.5, -0.1, -0.2), (0.5, 0.5, -0.1, -0.2), 0.0),
    ],
)
def test_degenerate_boxes(
    backend: str, box: tuple[float, ...], target: tuple[float, ...], giou: float
) -> None:
    cost = box_match_cost(
        torch.zeros(1, 1, 2),
        torch.tensor([[box]]),
        torch.tensor([0]),
        torch.tensor([target]),
        [1],
        w_class=0,
        w_l1=0,
        w_giou=-1,
        backend=backend,
    )
    torch.testing.assert_close(cost.item(), giou, rtol=1e-6, atol=1e-6)


@backends
def test_logits_that_overflow_exp_keep_their_softmax(backend: str, rng: torch.Generator) -> None:
    inputs = make(rng, (4,), 33, 19, classification="softmax", w_l1=0.0, w_giou=0.0)
    for shift in (-1e4, -90.0, 85.0, 1e4):
        shifted = {**inputs, "logits": (inputs["logits"] + shift).float()}
        expected = box_match_cost(**{**shifted, "logits": shifted["logits"].double()}, backend="reference")
        actual = box_match_cost(**shifted, backend=backend)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-7)


def test_inputs_that_need_gradients_give_a_plain_result(rng: torch.Generator) -> None:
    inputs = make(rng, (3, 2), 8, 5)
    leaves = {k: v.requires_grad_() if k in ("logits", "boxes") else v for k, v in inputs.items()}
    assert not box_match_cost(**leaves).requires_grad
    leaves = {k: v.float() if k in ("logits", "boxes") else v for k, v in leaves.items()}
    assert not box_match_cost(**leaves).requires_grad
    compiled = torch.compile(lambda kw: box_match_cost(**kw), fullgraph=True, backend="aot_eager")
    assert not compiled(leaves).requires_grad


def test_dtypes_may_differ(rng: torch.Generator) -> None:
    inputs = make(rng, (3, 2), 20, 5)
    half = {**inputs, "logits": inputs["logits"].half(), "target_boxes": inputs["target_boxes"].bfloat16()}
    for boxes in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        mixed = {**half, "boxes": inputs["boxes"].to(boxes)}
        wide = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in mixed.items()
        }
        actual = box_match_cost(**mixed)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), box_match_cost(**wide), rtol=0, atol=1e-5)


def test_every_half_is_widened_exactly() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        halves = bits.view(dtype)
        halves = halves[halves.isfinite() & (halves.abs() < 1e30)]
        boxes = torch.zeros(1, len(halves), 4, dtype=dtype)
        boxes[0, :, 0] = halves
        cost = box_match_cost(
            torch.zeros(1, len(halves), 1),
            boxes,
            torch.tensor([0]),
            torch.zeros(1, 4),
            [1],
            w_class=0,
            w_l1=1,
            w_giou=0,
        )
        assert torch.equal(cost[0], halves.float().abs())


def test_random_ragged_batches(rng: torch.Generator) -> None:
    for _ in range(60):
        layers, queries, classes = (int(torch.randint(1, n, (), generator=rng)) for n in (4, 150, 40))
        num_targets = tuple(
            torch.randint(0, 12, (int(torch.randint(1, 5, (), generator=rng)),), generator=rng).tolist()
        )
        classification = ("softmax", "focal")[classes % 2]
        inputs = make(rng, num_targets, queries, classes, layers, classification=classification)
        narrow = {
            k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
        }
        wide = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in narrow.items()
        }
        torch.testing.assert_close(
            box_match_cost(**narrow).double(),
            box_match_cost(**wide),
            rtol=1e-6,
            atol=1e-5,
            msg=f"{num_targets} {inputs}",
        )


@pytest.mark.parametrize("backend", labels(OPERATOR), indirect=True)
def test_more_images_than_one_launch_takes(backend: str, rng: torch.Generator) -> None:
    num_targets = tuple(torch.randint(0, 3, (300,), generator=rng).tolist())
    inputs = make(rng, num_targets, queries=5, classes=3, layers=2)
    inputs["boxes"][:, ::7, 1] = torch.nan
    narrow = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }
    torch.testing.assert_close(
        box_match_cost(**narrow, backend=backend), box_match_cost(**narrow, backend="reference")
    )


@pytest.mark.parametrize("backend", labels(OPERATOR), indirect=True)
def test_gpu_label_out_of_range_counts_as_non_finite(backend: str, rng: torch.Generator) -> None:
    inputs = make(rng, (3, 2), queries=40, classes=4, layers=1)
    inputs["target_labels"][1], inputs["target_labels"][4] = 4, -1
    narrow = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }
    costs = box_match_cost(**narrow, backend=backend)[0]
    for bad, block in ((1, slice(0, 3)), (4, slice(3, 5))):
        others = [t for t in range(*block.indices(5)) if t != bad]
        assert (costs[bad] == costs[bad, 0]).all()
        assert costs[bad, 0] > len(others) * costs[others].max() - (len(others) - 1) * costs[others].min()
