"""mask_match_cost beyond the contract: the official formulas, sums over many points, non-finite inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from detr_fast.ops import linear_assignment, mask_match_cost
from detr_fast.ops.mask_match_cost import OPERATOR
from tests.ops.cases.mask_match_cost import make
from tests.ops.contract import Inputs, to_float64
from tests.ops.simulated import labels

BACKENDS = [n for n, why in OPERATOR.explain(torch.device("cpu"), torch.float32).items() if why is None]
backends = pytest.mark.parametrize("backend", [*BACKENDS, *labels(OPERATOR)], indirect=True)
mask_costs = pytest.mark.parametrize("mask_cost", ["bce", "focal"])


def narrow(inputs: Inputs) -> Inputs:
    return {
        k: v.float() if isinstance(v, Tensor) and v.dtype.is_floating_point else v for k, v in inputs.items()
    }


@backends
@pytest.mark.parametrize(
    ("mask_cost", "alpha", "gamma"),
    [("bce", 0.25, 2.0), *(("focal", *pair) for pair in ((0.25, 2.0), (0.6, 1.5), (-1.0, 2.0), (0.3, 0.0)))],
)
def test_equals_the_official_formulas(
    backend: str, mask_cost: str, alpha: float, gamma: float, rng: torch.Generator
) -> None:
    inputs = make(rng, (6, 0, 3), 40, 60, targets="uint8", mask_cost=mask_cost, alpha=alpha, gamma=gamma)
    weights = {"w_class": 2.0, "w_mask": 3.0, "w_dice": 4.0}
    actual = mask_match_cost(**narrow(inputs), **weights, backend=backend)
    inputs = to_float64(narrow(inputs))
    blocks = []
    for b, (wanted, targets) in enumerate(
        zip(
            inputs["target_labels"].split((6, 0, 3)),
            inputs["target_values"].double().split((6, 0, 3)),
            strict=True,
        )
    ):
        x, t = torch.broadcast_tensors(inputs["mask_values"][b], targets[:, None])
        p = x.sigmoid()
        loss = binary_cross_entropy_with_logits(x, t, reduction="none")
        if mask_cost == "focal":
            wrong = p * (1 - t) + (1 - p) * t  # as published, for targets 0 and 1
            loss = loss * wrong**gamma * (alpha * t + (1 - alpha) * (1 - t) if alpha >= 0 else 1)
        dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
        classes = -inputs["logits"][b].softmax(-1).T[wanted]
        blocks.append(2 * classes + 3 * loss.mean(-1) + 4 * dice)
    torch.testing.assert_close(actual.double(), torch.cat(blocks), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "points", "scale"),
    [("cpu", 12544, 1.0), ("cpu", 12544, 30.0), *((label, 2000, 1.0) for label in labels(OPERATOR))],
    indirect=["backend"],
)
def test_sums_over_many_points_stay_exact(
    backend: str, points: int, scale: float, rng: torch.Generator
) -> None:
    """Mask2Former's 12544 points: the error of the mask term does not grow with their number."""
    inputs = narrow(make(rng, (3,), 4, points, scale=scale, w_class=0.0, w_mask=1.0, w_dice=0.0))
    mean = inputs["mask_values"].abs().mean()
    error = mask_match_cost(**inputs, backend=backend) - mask_match_cost(
        **to_float64(inputs), backend="reference"
    )
    assert error.abs().max() < 3e-7 * mean
    dice = {**inputs, "w_mask": 0.0, "w_dice": 1.0}
    error = mask_match_cost(**dice, backend=backend) - mask_match_cost(
        **to_float64(dice), backend="reference"
    )
    assert error.abs().max() < 1e-6


@backends
def test_a_sure_and_right_mask_costs_nothing(backend: str, rng: torch.Generator) -> None:
    values = torch.rand(3, 3000, generator=rng) < 0.4
    masks = 90 * (2.0 * values - 1)[None]
    cost = mask_match_cost(
        torch.zeros(1, 3, 2),
        masks,
        torch.zeros(3, dtype=torch.int64),
        values,
        [3],
        w_class=0,
        backend=backend,
    )
    assert cost.diagonal().abs().max() < 5 * 3e-7 * 90 + 5e-6
    assert cost.fill_diagonal_(torch.inf).min() > 100


@backends
@mask_costs
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_pairs_cost_more_than_any_assignment(
    backend: str, mask_cost: str, bad: float, rng: torch.Generator
) -> None:
    """Image 0 has spoilt queries, image 1 none, image 2 nothing else; layer 1 is clean."""
    inputs = narrow(make(rng, (5, 4, 3), 30, 50, layers=2, mask_cost=mask_cost))
    clean = mask_match_cost(**inputs, backend=backend)
    inputs["mask_values"][0, 0, 3, 49] = bad
    inputs["mask_values"][0, 0, 29] = bad
    inputs["mask_values"][0, 2, :, 0] = bad
    inputs["logits"][0, 0, 11] = torch.nan
    cost = mask_match_cost(**inputs, backend=backend)
    torch.testing.assert_close(cost[1], clean[1], rtol=0, atol=0)
    torch.testing.assert_close(cost[0, 5:9], clean[0, 5:9], rtol=0, atol=0)
    assert (cost[0, 9:] == 0).all()
    spoilt = torch.zeros(30, dtype=torch.bool)
    spoilt[[3, 11, 29]] = True
    finite, penalty = cost[0, :5, ~spoilt], cost[0, :5, spoilt]
    torch.testing.assert_close(finite, clean[0, :5, ~spoilt], rtol=0, atol=0)
    assert penalty.isfinite().all()
    assert (penalty == penalty[0, 0]).all()
    assert penalty[0, 0] > 5 * finite.max() - 4 * finite.min()
    assert not spoilt[linear_assignment(cost, inputs["num_targets"])[0, :5]].any()


@pytest.mark.parametrize("backend", ["cpu", *labels(OPERATOR)], indirect=True)
def test_targets_of_any_kind_give_the_same_bits(backend: str, rng: torch.Generator) -> None:
    inputs = narrow(make(rng, (3, 4), 9, 67, layers=2, targets="bool"))
    expected = mask_match_cost(**inputs, backend=backend)
    values = inputs["target_values"]
    for dtype in (torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for given in (values.to(dtype), values.to(dtype).expand(2, -1, -1)):
            actual = mask_match_cost(**{**inputs, "target_values": given}, backend=backend)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_dtypes_may_differ(rng: torch.Generator) -> None:
    inputs = make(rng, (3, 2), 20, 90, layers=2)
    for masks in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        mixed = {
            **inputs,
            "logits": inputs["logits"].half(),
            "mask_values": inputs["mask_values"].to(masks),
            "target_values": inputs["target_values"].bfloat16(),
        }
        actual = mask_match_cost(**mixed)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(
            actual.double(), mask_match_cost(**to_float64(mixed)), rtol=1e-6, atol=1e-5
        )


@mask_costs
def test_every_instruction_set_at_the_edges_of_tiles(isa: str, mask_cost: str, rng: torch.Generator) -> None:
    for points in (1, 3, 4, 5, 7, 9, 15, 17, 255, 256, 257, 513, 1023, 1025):
        for targets in range(1, 9):
            inputs = narrow(make(rng, (targets,), 3, points, mask_cost=mask_cost))
            torch.testing.assert_close(
                mask_match_cost(**inputs, backend="cpu").double(),
                mask_match_cost(**to_float64(inputs), backend="reference"),
                rtol=1e-6,
                atol=1e-5,
                msg=f"{points} points, {targets} targets",
            )


def test_random_ragged_batches(rng: torch.Generator) -> None:
    for _ in range(40):
        layers, queries, points = (int(torch.randint(1, n, (), generator=rng)) for n in (4, 80, 700))
        images = int(torch.randint(1, 5, (), generator=rng))
        num_targets = tuple(torch.randint(0, 12, (images,), generator=rng).tolist())
        mask_cost, targets = ("bce", "focal")[points % 2], ("per_layer", "shared", "bool")[queries % 3]
        inputs = narrow(make(rng, num_targets, queries, points, layers, targets=targets, mask_cost=mask_cost))
        torch.testing.assert_close(
            mask_match_cost(**inputs).double(),
            mask_match_cost(**to_float64(inputs), backend="reference"),
            rtol=1e-6,
            atol=1e-5,
            msg=f"{num_targets}, {queries} queries, {points} points",
        )


def test_inputs_that_need_gradients_give_a_plain_result(rng: torch.Generator) -> None:
    inputs = narrow(make(rng, (3, 2), 8, 20))
    leaves = {k: v.requires_grad_() if k in ("logits", "mask_values") else v for k, v in inputs.items()}
    for backend in BACKENDS:
        assert not mask_match_cost(**leaves, backend=backend).requires_grad
    compiled = torch.compile(lambda kw: mask_match_cost(**kw), fullgraph=True, backend="aot_eager")
    assert not compiled(leaves).requires_grad


def test_the_reference_multiplies_in_float32_under_autocast(rng: torch.Generator) -> None:
    inputs = narrow(make(rng, (3, 2), 8, 200))
    expected = mask_match_cost(**inputs, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mask_match_cost(**inputs, backend="reference"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", labels(OPERATOR), indirect=True)
def test_gpu_label_out_of_range_counts_as_non_finite(backend: str, rng: torch.Generator) -> None:
    inputs = narrow(make(rng, (3, 2), queries=40, points=40, layers=1, classes=4))
    inputs["target_labels"][1], inputs["target_labels"][4] = 4, -1
    costs = mask_match_cost(**inputs, backend=backend)[0]
    for bad, block in ((1, slice(0, 3)), (4, slice(3, 5))):
        others = [t for t in range(*block.indices(5)) if t != bad]
        assert (costs[bad] == costs[bad, 0]).all()
        assert costs[bad, 0] > len(others) * costs[others].max() - (len(others) - 1) * costs[others].min()
