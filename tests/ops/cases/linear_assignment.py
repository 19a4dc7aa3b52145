"""What `linear_assignment` promises; answers are compared by total cost, never by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast.ops import linear_assignment
from detr_fast.ops.linear_assignment import OPERATOR, reference
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance


def clustered(
    layers: int, num_targets: Sequence[int], queries: int, spread: float, rng: torch.Generator
) -> Tensor:
    """L1 + class costs of predictions scattered around the targets: what a trained model gives.

    A tiny `spread` around one point is the start of training: all predictions nearly alike.
    """
    blocks = []
    for size in num_targets:
        targets = torch.rand(size, 4, generator=rng, dtype=torch.float64)
        if spread < 0.01:
            centres = torch.rand(1, 4, generator=rng, dtype=torch.float64).expand(queries, 4)
        else:
            chosen = torch.randint(max(size, 1), (queries,), generator=rng)
            centres = targets[chosen] if size else torch.zeros(queries, 4, dtype=torch.float64)
        noise = torch.randn(layers, queries, 4, generator=rng, dtype=torch.float64)
        classes = torch.rand(layers, 1, queries, generator=rng, dtype=torch.float64)
        blocks.append(
            5 * torch.cdist(targets.expand(layers, -1, -1), centres + spread * noise, p=1) - spread * classes
        )
    return torch.cat(blocks, dim=1)


def uniform(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def _case(name: str, num_targets: Sequence[int], costs: Callable[[torch.Generator], Tensor]) -> Case:
    return Case(name, lambda rng: {"costs": costs(rng), "num_targets": list(num_targets)})


def _special(rng: torch.Generator, kind: float) -> Tensor:
    costs = uniform((2, 12, 9), rng)
    costs[torch.rand(costs.shape, generator=rng) < 0.15] = kind
    # a diagonal of finite entries keeps every problem feasible
    costs[:, torch.arange(9), torch.arange(9)] = 2.0
    return costs


CASES = [
    _case("typical", [5, 0, 9, 3], lambda g: clustered(3, [5, 0, 9, 3], 40, 0.05, g)),
    _case("one_layer", [7, 4], lambda g: clustered(1, [7, 4], 100, 0.05, g)[0]),
    _case("early", [30, 11], lambda g: clustered(2, [30, 11], 90, 1e-3, g)),
    _case("more_targets_than_queries", [12, 3, 30], lambda g: uniform((2, 45, 10), g)),
    _case("square", [16, 16], lambda g: uniform((2, 32, 16), g)),
    _case("large", [300], lambda g: clustered(1, [300], 900, 0.05, g)),
    _case("leading_dimensions", [3, 4], lambda g: uniform((2, 3, 1, 7, 8), g)),
    _case("ties", [6, 20], lambda g: torch.randint(3, (2, 26, 15), generator=g).double()),
    _case("all_equal", [6, 20], lambda g: torch.full((2, 26, 15), 0.25, dtype=torch.float64)),
    _case("integers", [40], lambda g: torch.randint(-100, 100, (2, 40, 60), generator=g).double()),
    _case("one_query", [1, 4, 0], lambda g: uniform((2, 5, 1), g)),
    _case("no_targets", [0, 0], lambda g: uniform((2, 0, 8), g)),
    _case("no_queries", [2, 1], lambda g: uniform((2, 3, 0), g)),
    _case("no_images", [], lambda g: uniform((2, 0, 5), g)),
    _case("no_layers", [2, 1], lambda g: uniform((0, 3, 5), g)),
    _case("forbidden", [9, 3], lambda g: _special(g, torch.inf)),
    _case("nan", [9, 3], lambda g: _special(g, torch.nan)),
    _case("minus_infinity", [9, 3], lambda g: _special(g, -torch.inf)),
    _case("all_nan", [9, 3], lambda g: torch.full((2, 12, 9), torch.nan, dtype=torch.float64)),
]


def total(block: Tensor, query: Tensor) -> float:
    """Float64 cost of one problem's assignment, with the penalties of entries that are not finite."""
    row = torch.nonzero(query >= 0).flatten()
    costs = torch.from_numpy(reference.finite_penalties(block.numpy()))
    return float(costs[row, query[row]].sum())


def check(inputs: Inputs, actual: Tensor, expected: Tensor) -> None:
    """Both are valid matchings of the same total cost, problem by problem."""
    costs, num_targets = inputs["costs"], inputs["num_targets"]
    assert actual.dtype == torch.int64
    assert actual.shape == expected.shape == costs.shape[:-1]
    queries = costs.shape[-1]
    problems = zip(
        costs.reshape(-1, *costs.shape[-2:]).unbind() if costs.numel() else (),
        actual.reshape(-1, sum(num_targets)).cpu().unbind() if costs.numel() else (),
        expected.reshape(-1, sum(num_targets)).cpu().unbind() if costs.numel() else (),
        strict=True,
    )
    for layer in problems:
        for block, got, want in zip(*(part.split(num_targets) for part in layer), strict=True):
            used = got[got >= 0]
            assert used.numel() == min(got.numel(), queries), "every target or every query takes part"
            assert used.unique().numel() == used.numel(), "a query is given away twice"
            assert bool((used < queries).all())
            scale = max(1.0, abs(total(block, want)))
            assert abs(total(block, got) - total(block, want)) <= 1e-10 * scale
    if queries == 0:
        assert bool((actual == -1).all())


CONTRACTS = [
    Contract(
        operator=OPERATOR,
        function=linear_assignment,
        cases=CASES,
        dtypes={torch.float32: Tolerance(0), torch.float16: Tolerance(0), torch.bfloat16: Tolerance(0)},
        cast=("costs",),
        check=check,
        bad_inputs=[
            BadInput(
                "num_targets",
                lambda i: {**i, "num_targets": [1, 2]},
                ValueError,
                r"sumT, Q\].*= 3; got \[3, 17, 40\]",
            ),
            BadInput("negative", lambda i: {**i, "num_targets": [20, -3]}, ValueError, "no negative number"),
            BadInput("vector", lambda i: {**i, "costs": i["costs"][0, 0]}, ValueError, r"got \[40\]"),
            BadInput("integers", lambda i: {**i, "costs": i["costs"].long()}, TypeError, "floating point"),
            BadInput(
                "list", lambda i: {**i, "costs": i["costs"].tolist()}, TypeError, "costs: expected a tensor"
            ),
            BadInput("float_sizes", lambda i: {**i, "num_targets": [17.0]}, TypeError, "float"),
            BadInput(
                "tensor_sizes", lambda i: {**i, "num_targets": torch.tensor([17])}, TypeError, "Python ints"
            ),
            BadInput(
                "infeasible",
                lambda i: {**i, "costs": torch.full_like(i["costs"], torch.inf)},
                ValueError,
                r"cost matrix is infeasible: image 0 of leading index \(0,\)",
            ),
        ],
    )
]
