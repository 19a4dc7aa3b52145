"""Every instruction set of this machine gives what the reference gives; assignments are the same in each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from detr_fast.extension import extension
from detr_fast.ops import box_match_cost, linear_assignment, ms_deform_attn, point_sample

C = extension()
LEVELS = ((13, 17), (7, 9))


@pytest.fixture(params=C.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = C.isa()
    C.set_isa(request.param)
    yield request.param
    C.set_isa(before)


def _assigned(costs: Tensor, num_targets: tuple[int, ...]) -> Tensor:
    return linear_assignment(costs, num_targets, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_assignments(isa: str, dtype: torch.dtype, ties: bool) -> None:
    for queries, targets in ((1, 1), (7, 3), (20, 20), (100, 7), (100, 20), (131, 61), (40, 70), (64, 64)):
        costs = torch.rand(2 * targets, queries, dtype=dtype)
        costs = (9 * costs).round() if ties else costs
        num_targets = (targets, targets)
        found, expected = (
            _assigned(costs, num_targets),
            linear_assignment(costs, num_targets, backend="reference"),
        )
        rows = torch.arange(2 * targets)
        totals = [costs.double()[rows[q >= 0], q[q >= 0]].sum().item() for q in (found, expected)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-6)
        batch = costs.view(2, targets, queries).transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(_assigned(batch, (targets,)).flatten(), found)
        C.set_isa(C.isas()[-1])
        assert torch.equal(_assigned(costs, num_targets), found)
        C.set_isa(isa)


def test_attention(isa: str) -> None:
    pixels = sum(height * width for height, width in LEVELS)
    inputs = (
        torch.randn(2, pixels, 3, 20),
        torch.rand(2, 11, 3, 2, 4, 2) * 1.4 - 0.2,
        torch.rand(2, 11, 3, 2, 4),
    )
    results = []
    for backend in ("cpu", "reference"):
        value, locations, weights = (x.clone().requires_grad_() for x in inputs)
        out = ms_deform_attn(value, LEVELS, locations, weights, backend=backend)
        out.sum().backward()
        results.append([out, value.grad, locations.grad, weights.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-3)


def test_costs(isa: str) -> None:
    boxes, targets = torch.rand(2, 3, 67, 4) * 0.3 + 0.2, torch.rand(9, 4) * 0.3 + 0.2
    logits, labels = torch.randn(2, 3, 67, 12), torch.randint(0, 11, (9,))
    costs = [
        box_match_cost(logits, boxes, labels, targets, (4, 0, 5), backend=backend)
        for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-4, atol=1e-4)


def test_points(isa: str) -> None:
    maps, points = torch.randn(3, 2, 15, 18), torch.rand(3, 133, 2) * 1.2 - 0.1
    ours, expected = (point_sample(maps, points, backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
