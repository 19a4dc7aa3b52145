"""What a result must satisfy before it is timed: agreement with the float64 reference on the same inputs.

Results come in canonical forms: mappings of named tensors, or the query of each target for matchings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class ContractFailed(Exception):
    """A result differs from the reference, so its time means nothing."""


# Largest error, relative to the largest entry of the float64 reference, or one rounding of a narrower result.
# Locations are multiplied by the level's size before they are rounded, and their gradients see it.
TOLERANCES = {"grad_locations": 5e-4, "grad_offsets": 5e-4}
TOLERANCE = 5e-5


def in_float64(value: Any) -> Any:
    """The very numbers, every floating tensor widened: in dataclasses, mappings and sequences too."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: in_float64(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(in_float64, value))
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: in_float64(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **parts)
    return value


def compare(expected: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> None:
    """Named tensors within the tolerances; raises ContractFailed."""
    if missing := expected.keys() - result.keys():
        raise ContractFailed(f"no {', '.join(sorted(missing))} in the result")
    for name, want in expected.items():
        got = result[name]
        if got.shape != want.shape:
            raise ContractFailed(f"{name}: shape {list(got.shape)} in place of {list(want.shape)}")
        if not torch.isfinite(got).all():
            raise ContractFailed(f"{name}: not finite")
        if want.numel():
            error = (got.double() - want).abs().max().item() / max(want.abs().max().item(), 1e-12)
            require(name, error, max(TOLERANCES.get(name, TOLERANCE), torch.finfo(got.dtype).eps))


def compare_norm(name: str, want: Tensor, got: Tensor, tolerance: float) -> None:
    """By the Euclidean norm, where single entries may differ; raises ContractFailed."""
    require(name, float((got.double() - want).norm() / want.double().norm()), tolerance)


def require(name: str, error: float, tolerance: float) -> None:
    """Raises ContractFailed for an error over the tolerance or not a number."""
    if not error <= tolerance:
        raise ContractFailed(f"{name}: relative error {error:.1e} over {tolerance:.0e}")


@dataclass(frozen=True)
class Matching:
    """costs: one [T, Q] matrix a problem. tolerance: of a total cost above the least."""

    costs: Sequence[Tensor]
    tolerance: float

    @cached_property
    def totals(self) -> list[float]:
        """The least of each problem, by scipy."""
        problems = [cost.double().cpu() for cost in self.costs]
        return [float(cost[linear_sum_assignment(cost)].sum()) for cost in problems]


def verify_matching(expected: Matching, queries: Sequence[Tensor]) -> None:
    """`queries`: one int64 [T] a problem, the query of each target or -1."""
    if len(queries) != len(expected.costs):
        raise ContractFailed(f"{len(queries)} problems solved in place of {len(expected.costs)}")
    for i, (query, of_problem, total) in enumerate(
        zip(queries, expected.costs, expected.totals, strict=True)
    ):
        cost = of_problem.double().cpu()
        targets = torch.nonzero(query >= 0).flatten()
        chosen = query[targets]
        if len(query) != cost.shape[0] or len(targets) != min(cost.shape):
            raise ContractFailed(f"problem {i}: {len(targets)} targets matched in place of {min(cost.shape)}")
        if chosen.unique().numel() != len(chosen) or (chosen >= cost.shape[1]).any():
            raise ContractFailed(f"problem {i}: a query is used twice or does not exist")
        found = cost[targets, chosen].sum().item()
        if abs(found - total) > expected.tolerance * max(1.0, abs(total)):
            raise ContractFailed(f"problem {i}: total cost {found:.9g}, the least is {total:.9g}")


def from_pairs(pairs: Iterable[tuple[Any, Any]], num_targets: Sequence[int]) -> list[Tensor]:
    """(target indices, query indices) of each problem as its targets' queries, int64 [T] with -1 for none."""
    queries = []
    for targets, (target, query) in zip(num_targets, pairs, strict=True):
        of_problem = torch.full((targets,), -1, device="cpu")
        of_problem[torch.as_tensor(target).long().cpu()] = torch.as_tensor(query).long().cpu()
        queries.append(of_problem)
    return queries


def losses_and_gradients(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], **leaves: Tensor
) -> dict[str, Tensor]:
    """Losses by name, and `grad_<leaf>` of their weighted sum; weights: by the names without a layer."""
    parts = [(weights.get("_".join(name.split("_")[:2]), 0), loss) for name, loss in losses.items()]
    total = torch.stack([weight * loss for weight, loss in parts if weight]).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return {
        **{name: loss.detach() for name, loss in losses.items()},
        **{f"grad_{leaf}": gradient for leaf, gradient in zip(leaves, gradients, strict=True)},
    }
