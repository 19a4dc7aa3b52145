"""The CUDA kernel of `linear_assignment`, executed on the host: what the contract leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_fast.ops import linear_assignment
from detr_fast.ops.linear_assignment import _CALL, OPERATOR
from detr_fast.ops.linear_assignment.cuda import Cuda
from detr_fast.ops.linear_assignment.reference import finite_penalties
from detr_fast.ops.operator import BackendUnavailable, Operator, always
from tests.conftest import SEED
from tests.ops.simulated import simulated
from tests.ops.stress_linear_assignment import KINDS, batch, mismatches
from tests.ops.test_linear_assignment import optimality_gap
from tests.simt.build import simt_module

NEAR, FAR = 48 * 1024, 0  # bytes of shared memory: the state lies there, or in the workspace


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Results and workspace start out as the largest integers."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def solve(
    costs: Tensor, num_targets: list[int], shared_bytes: int = NEAR, by_auction: bool = False
) -> tuple[Tensor, Tensor]:
    query, status = Cuda(simt_module, shared_bytes).solve(costs, num_targets, False, by_auction)
    assert status is not None
    return query, status


@pytest.mark.parametrize("kind", KINDS)
def test_host_totals_equal_scipy(kind: str) -> None:
    rng = np.random.default_rng(SEED)
    for largest in (3, 8, 24):
        costs, num_targets = batch(rng, kind, largest)
        shared_bytes = int(rng.choice([NEAR, FAR]))
        assert list(mismatches(costs, num_targets, lambda c, s, m=shared_bytes: solve(c, s, m))) == []


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("beyond_float32", "not_finite")])
def test_host_dual_certificate_proves_optimality(kind: str) -> None:
    rng = np.random.default_rng(SEED)
    for targets, queries in [(1, 1), (1, 30), (7, 40), (20, 20), (24, 36), (30, 10)]:
        costs = torch.from_numpy(KINDS[kind](rng, (1, targets, queries)))
        query, status = solve(costs, [targets])
        if status[0, 0]:
            continue
        block, got = finite_penalties(costs[0].numpy()), query[0].numpy()
        if targets > queries:  # the same problem with the sides exchanged
            chosen = np.flatnonzero(got >= 0)
            got, block = chosen[np.argsort(got[chosen])], block.T
        top = np.abs(block[np.isfinite(block)]).max()
        block = np.where(np.isinf(block), 4 * (len(got) + 1) * top, block)
        assert abs(optimality_gap(block, got)) <= 1e-11 * top * len(got) ** 2


@pytest.mark.parametrize(("targets", "queries"), [(140, 150), (190, 135)])
@pytest.mark.parametrize("kind", ["uniform", "two_values", "forbidden"])
def test_host_more_rows_than_one_warp_takes(kind: str, targets: int, queries: int) -> None:
    costs = torch.from_numpy(KINDS[kind](np.random.default_rng(SEED), (1, targets, queries))).float()
    assert list(mismatches(costs, [targets], solve)) == []


def test_host_answer_depends_on_the_problem_alone(rng: torch.Generator) -> None:
    costs = torch.randint(4, (2, 44, 25), generator=rng).float()
    num_targets = [12, 0, 32]
    expected, status = solve(costs, num_targets)
    assert not status.any()
    wide = torch.full((2, 49, 60), torch.nan)
    wide[:, 2:46, 10:60:2] = costs
    for same in (costs.mT.contiguous().mT, wide[:, 2:46, 10:60:2], costs.double()):
        assert torch.equal(solve(same, num_targets)[0], expected)
    assert torch.equal(solve(costs, num_targets, FAR)[0], expected)
    alone = [solve(part.contiguous(), [part.shape[1]])[0] for part in costs.split(num_targets, dim=1)]
    assert torch.equal(torch.cat(alone, dim=1), expected)
    # beside a problem that brings larger blocks, whichever comes first
    other = torch.rand(2, 130, 25, generator=rng).mT.contiguous().mT
    beside, _ = solve(torch.cat([costs, other], dim=1), [*num_targets, 130])
    assert torch.equal(beside[:, :44], expected)
    assert torch.equal(solve(costs.flip(0), num_targets)[0], expected.flip(0))


def test_host_more_rows_bring_larger_blocks_and_the_same_answer(rng: torch.Generator) -> None:
    small = torch.randint(3, (9, 140), generator=rng).float()
    large = torch.rand(135, 140, generator=rng)
    query, _ = solve(torch.cat([small, large]), [9, 135])
    assert torch.equal(query[:9], solve(small, [9])[0])


@pytest.mark.parametrize("shared_bytes", [NEAR, FAR])
def test_host_order_of_blocks_and_threads_does_not_matter(rng: torch.Generator, shared_bytes: int) -> None:
    costs = torch.randint(5, (3, 30, 20), generator=rng).float()
    answers = []
    for seed in range(4):
        simt_module().set_seed(seed)
        answers.append(solve(costs, [4, 18, 8], shared_bytes))
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))


def test_host_infeasible_problems_have_a_status_and_no_queries() -> None:
    costs = torch.rand(2, 5, 4)
    costs[1, 2:, [0, 1, 3]] = torch.inf
    for shared_bytes in (NEAR, FAR):
        query, status = solve(costs, [2, 3], shared_bytes)
        assert status.tolist() == [[0, 0], [0, 1]]
        assert query[1, 2:].tolist() == [-1, -1, -1]
        assert bool((query[0] >= 0).all())
        assert Cuda(simt_module, shared_bytes).solve(costs, [2, 3], True)[1] is None


@pytest.mark.parametrize("shared_bytes", [1 << 30, FAR])
def test_workspace_is_what_each_image_takes_by_itself(shared_bytes: int) -> None:
    """Not what the largest one would take in all of them."""

    def workspace(num_targets: list[int]) -> int:
        return simt_module().linear_assignment_cuda_workspace(num_targets, 6, 900, False, shared_bytes)

    mixed = [900, 0, 1, 20, 300, 1200, 7]
    assert workspace(mixed) == sum(workspace([targets]) for targets in mixed)
    state = 48 if shared_bytes == FAR else 0
    for targets in mixed:
        rows = min(targets, 900)
        assert workspace([targets]) == 6 * (4 * rows**2 + 8 * (targets + 900) + state * targets + 4)
    # beyond 32 bits
    assert workspace([900] * 2000) == 2000 * workspace([900]) > 2**32


def test_host_images_of_very_different_sizes_share_a_workspace(rng: torch.Generator) -> None:
    num_targets = [1, 40, 0, 130, 3, 12]
    costs = torch.randint(6, (2, sum(num_targets), 60), generator=rng).float()
    for shared_bytes in (NEAR, FAR):
        assert list(mismatches(costs, num_targets, lambda c, s, m=shared_bytes: solve(c, s, m))) == []


@pytest.mark.parametrize(
    ("targets", "queries", "many"), [(2048, 5000, False), (2049, 2049, True), (0, 9, False)]
)
def test_more_rows_than_a_gpu_should_solve_go_to_the_host(targets: int, queries: int, many: bool) -> None:
    costs = torch.empty(1, targets + 1, queries, device="meta")
    assert _CALL.shape_key is not None
    key = _CALL.shape_key((costs, [1, targets], True, "paths"))
    assert key == many
    anywhere = Operator(
        "linear_assignment", *(replace(b, why_not=always) for b in OPERATOR.backends.values())
    )
    anywhere.backends.pop("cpu")
    cuda, dtype = torch.device("cuda"), torch.float32
    chosen = anywhere.select(cuda, dtype, shape_key=key)
    assert chosen is anywhere.backends["reference" if many else "cuda"].implementation
    if many:
        for pin in ("cuda", "triton"):
            with pytest.raises(BackendUnavailable, match=r"solves problems with min\(T, Q\) <= 2048"):
                anywhere.select(cuda, dtype, pin, key)


def test_host_more_images_than_one_launch_takes(rng: torch.Generator) -> None:
    num_targets = [b % 3 for b in range(300)]
    costs = torch.rand(sum(num_targets), 3, generator=rng)
    query, status = solve(costs, num_targets)
    assert torch.equal(query, linear_assignment(costs, num_targets, backend="cpu"))
    assert not status.any()


@pytest.mark.parametrize("kind", KINDS)
def test_host_auction_totals_equal_scipy(kind: str) -> None:
    rng = np.random.default_rng(SEED)
    for largest, shared_bytes in ((3, NEAR), (8, FAR), (12, NEAR)):
        costs, num_targets = batch(rng, kind, largest)
        assert list(mismatches(costs, num_targets, lambda c, s, m=shared_bytes: solve(c, s, m, True))) == []


@pytest.mark.parametrize("kind", ["uniform", "clustered", "integers", "normal"])
def test_host_auction_dual_certificate_proves_optimality(kind: str) -> None:
    rng = np.random.default_rng(SEED)
    for targets, queries in [(1, 2), (7, 40), (20, 20), (30, 34)]:
        costs = torch.from_numpy(KINDS[kind](rng, (1, targets, queries)))
        query, status = solve(costs, [targets], by_auction=True)
        assert not status.any()
        bound = 1e-11 * float(costs.abs().max()) * targets**2
        assert abs(optimality_gap(costs[0].numpy(), query[0].numpy())) <= bound


def test_host_auction_order_of_blocks_and_threads_does_not_matter(rng: torch.Generator) -> None:
    costs = torch.rand(2, 30, 20, generator=rng)
    answers = []
    for seed in range(3):
        simt_module().set_seed(seed)
        answers.append(solve(costs, [4, 18, 8], by_auction=True)[0])
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_auction_is_in_one_backend_only(rng: torch.Generator) -> None:
    costs = torch.rand(3, 5, generator=rng)
    with simulated(OPERATOR, "host") as backend:
        query = linear_assignment(costs, [3], method="auction", backend=backend)
    assert torch.equal(query, linear_assignment(costs, [3], backend="reference"))
    for other in ("cpu", "reference", None):
        with pytest.raises(ValueError, match='method: "auction" is in the "cuda" backend only'):
            linear_assignment(costs, [3], method="auction", backend=other)
    with pytest.raises(ValueError, match="method: expected 'paths' or 'auction'; got 'hungarian'"):
        linear_assignment(costs, [3], method="hungarian")  # type: ignore[call-overload]
