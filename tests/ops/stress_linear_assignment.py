"""Random, tied, degenerate and extreme assignment problems against scipy, as many as wanted.

    python -m tests.ops.stress_linear_assignment --problems 100000
    python -m tests.ops.stress_linear_assignment --problems 5000 --simulate host

prints how many problems of each kind were solved and every mismatch in total cost, and fails if there
is one. The second form executes the CUDA kernels on the CPU, checking every access, slowly.
"""

from __future__ import annotations

import argparse
import collections
import functools
import random
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.random import Generator
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_fast.ops import linear_assignment
from detr_fast.ops.linear_assignment import OPERATOR
from detr_fast.ops.linear_assignment.reference import finite_penalties
from tests.ops.simulated import labels, simulated

Shape = tuple[int, int, int]


def _early(rng: Generator, shape: Shape) -> np.ndarray:
    """Nearly identical predictions: every target sees the same small differences between queries."""
    layers, targets, queries = shape
    slopes = rng.normal(size=(layers, targets, 4))
    return rng.random((layers, targets, 1)) + 1e-3 * slopes @ rng.normal(size=(layers, 4, queries))


def _clustered(rng: Generator, shape: Shape) -> np.ndarray:
    layers, targets, queries = shape
    at = rng.random((layers, max(targets, 1), 4))
    near = at[:, rng.integers(at.shape[1], size=queries)] + 0.05 * rng.normal(size=(layers, queries, 4))
    return np.abs(at[:, :targets, None] - near[:, None]).sum(-1)


def _duplicated(rng: Generator, shape: Shape) -> np.ndarray:
    costs = rng.random(shape)
    costs = costs[:, rng.integers(shape[1], size=shape[1])] if shape[1] else costs
    return costs[:, :, rng.integers(shape[2], size=shape[2])]


def _sprinkled(value: float, share: float) -> Callable[[Generator, Shape], np.ndarray]:
    def make(rng: Generator, shape: Shape) -> np.ndarray:
        costs = rng.normal(size=shape)
        costs[rng.random(shape) < share] = value
        return costs

    return make


KINDS: dict[str, Callable[[Generator, Shape], np.ndarray]] = {
    "uniform": lambda rng, shape: rng.random(shape),
    "normal": lambda rng, shape: rng.normal(size=shape),
    "clustered": _clustered,
    "early": _early,
    "two_values": lambda rng, shape: rng.integers(2, size=shape).astype(float),
    "few_integers": lambda rng, shape: rng.integers(-3, 4, size=shape).astype(float),
    "integers": lambda rng, shape: rng.integers(-1000, 1000, size=shape).astype(float),
    "all_equal": lambda rng, shape: np.full(shape, rng.normal()),
    "duplicated": _duplicated,
    "row_plus_column": lambda rng, shape: rng.random((*shape[:2], 1)) + rng.random((shape[0], 1, shape[2])),
    "row_times_column": lambda rng, shape: rng.random((*shape[:2], 1)) * rng.random((shape[0], 1, shape[2])),
    "sorted": lambda rng, shape: np.sort(rng.random(shape), axis=-1),
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e37,
    "beyond_float32": lambda rng, shape: rng.uniform(-1, 1, size=shape) * 1.7e308,
    "tiny": lambda rng, shape: rng.random(shape) * 1e-30,
    "denormal": lambda rng, shape: rng.integers(1, 1000, size=shape) * 2.0**-149,
    "wide_range": lambda rng, shape: 10.0 ** rng.uniform(-12, 12, size=shape),
    "forbidden": _sprinkled(np.inf, 0.3),
    "mostly_forbidden": _sprinkled(np.inf, 0.8),
    "nan": _sprinkled(np.nan, 0.3),
    "mostly_nan": _sprinkled(np.nan, 0.9),
    "minus_infinity": _sprinkled(-np.inf, 0.2),
    "not_finite": lambda rng, shape: rng.choice([1.0, 2.0, np.nan, np.inf, -np.inf], size=shape),
}


def batch(rng: Generator, kind: str, largest: int = 40) -> tuple[Tensor, list[int]]:
    """A ragged batch of one kind: costs [L, sumT, Q] in a random dtype and memory layout, and num_targets."""
    queries = int(rng.integers(1, largest + 1))
    num_targets = [int(rng.integers(0, largest + 1)) for _ in range(rng.integers(1, 6))]
    costs = torch.from_numpy(KINDS[kind](rng, (int(rng.integers(1, 4)), sum(num_targets), queries)))
    if kind != "beyond_float32" and rng.random() < 0.5:
        costs = costs.float()
    layout = rng.integers(3)
    if layout == 1:
        costs = costs.mT.contiguous().mT
    elif layout == 2:
        costs = torch.stack([costs, torch.full_like(costs, torch.nan)], -1)[..., 0]
    return costs, num_targets


def _solve(costs: Tensor, num_targets: list[int], backend: str | None = None) -> tuple[Tensor, Tensor]:
    return linear_assignment(costs, num_targets, return_status=True, backend=backend)


def mismatches(
    costs: Tensor,
    num_targets: list[int],
    solve: Callable[[Tensor, list[int]], tuple[Tensor, Tensor]] = _solve,
) -> Iterator[str]:
    """Solves the batch and says what is wrong with each answer that is not optimal."""
    query, status = solve(costs, num_targets)
    for layer, (all_costs, all_queries) in enumerate(zip(costs.double(), query, strict=True)):
        problems = zip(all_costs.split(num_targets), all_queries.split(num_targets), strict=True)
        for image, (block, got) in enumerate(problems):
            where = f"layer {layer} image {image} {list(block.shape)} {costs.dtype}"
            finite = finite_penalties(block.numpy())
            try:
                rows, columns = linear_sum_assignment(finite)
            except ValueError:
                if not status[layer, image] or bool((got >= 0).any()):
                    yield f"{where}: scipy finds no solution, status {status[layer, image]}, {got.tolist()}"
                continue
            chosen = np.flatnonzero(got.numpy() >= 0)
            used = got.numpy()[chosen]
            valid = len(chosen) == min(finite.shape) == len(set(used.tolist())) and not status[layer, image]
            if not valid or (used >= finite.shape[1]).any():
                yield f"{where}: no matching: {got.tolist()}, status {status[layer, image]}"
                continue
            expected, actual = finite[rows, columns], finite[chosen, used]
            scale = np.abs(expected).sum()
            # scaled first: the sums of extreme costs overflow
            if abs((actual / max(scale, 1e-300)).sum() - (expected / max(scale, 1e-300)).sum()) > 1e-11:
                yield f"{where}: total {actual.sum()!r}, scipy {expected.sum()!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--simulate", choices=labels(OPERATOR), help="a GPU backend, executed on the CPU")
    arguments = parser.parse_args()
    if arguments.simulate is None:
        return stress(arguments.problems, arguments.seed, None)
    with simulated(OPERATOR, arguments.simulate) as backend:
        return stress(arguments.problems, arguments.seed, backend)


def stress(problems: int, seed: int, backend: str | None) -> int:
    rng = np.random.default_rng(seed)
    solved: collections.Counter[str] = collections.Counter()
    wrong = 0
    while solved.total() < problems:
        kind = str(rng.choice(list(KINDS)))
        costs, num_targets = batch(rng, kind, largest=int(rng.choice([6, 40, 120], p=[0.5, 0.45, 0.05])))
        for message in mismatches(costs, num_targets, functools.partial(_solve, backend=backend)):
            wrong += 1
            print(f"MISMATCH {kind}: {message}", flush=True)
        solved[kind] += costs.shape[0] * len(num_targets)
    for kind in KINDS:
        print(f"{kind:18s} {solved[kind]:8d}")
    print(f"seed {seed}: {solved.total()} problems, {wrong} mismatches")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
