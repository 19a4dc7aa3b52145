"""What is special to `linear_assignment`: proofs of optimality, scipy's form, policy and layouts."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_fast import extension
from detr_fast.ops import linear_assignment, use_backend
from detr_fast.ops.linear_assignment import cpu
from detr_fast.ops.linear_assignment.reference import finite_penalties
from tests.conftest import SEED
from tests.ops.cases.linear_assignment import clustered
from tests.ops.stress_linear_assignment import KINDS, batch, mismatches


def optimality_gap(costs: np.ndarray, query: np.ndarray) -> float:
    """How far a dual bound, found without the solver, stays below the cost of an assignment [T <= Q].

    Prices of the owned queries come from Bellman-Ford on the exchanges between targets. With
    v <= 0 and v = 0 on free queries, sum_i min_j (c_ij - v_j) + sum_j v_j bounds every assignment.
    """
    rows = np.arange(len(query))
    own = costs[rows, query]
    free = np.setdiff1d(np.arange(costs.shape[1]), query)
    # u_i <= cheapest free query, u_i <= u_k + (cost of k's query to i - cost of it to k)
    u = costs[:, free].min(axis=1) if len(free) else own.copy()
    exchange = costs[:, query] - own[None]
    for _ in rows:
        u = np.minimum(u, (exchange + u[None]).min(axis=1))
    v = np.zeros(costs.shape[1])
    v[query] = own - u
    if len(free):
        v = np.minimum(v, 0)
    return own.sum() - ((costs - v).min(axis=1).sum() + v.sum())


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("beyond_float32", "not_finite")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dual_certificate_proves_optimality(kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(SEED)
    for targets, queries in [(1, 1), (1, 30), (7, 100), (20, 20), (40, 40), (60, 90), (90, 40)]:
        costs = torch.from_numpy(KINDS[kind](rng, (2, targets, queries))).to(dtype)
        query, status = linear_assignment(costs, [targets], return_status=True)
        for layer in range(2):
            if status[layer, 0]:
                continue
            block, got = finite_penalties(costs[layer].double().numpy()), query[layer].numpy()
            if targets > queries:  # the same problem with the sides exchanged
                chosen = np.flatnonzero(got >= 0)
                got = chosen[np.argsort(got[chosen])]
                block = block.T
            # a pair that is forbidden costs more than any solution without it
            top = np.abs(block[np.isfinite(block)]).max()
            block = np.where(np.isinf(block), 4 * (len(got) + 1) * top, block)
            assert abs(optimality_gap(block, got)) <= 1e-11 * top * len(got) ** 2


def test_large_problem_of_nearly_equal_predictions(rng: torch.Generator) -> None:
    costs = clustered(1, [300], 900, 1e-3, rng)[0]
    query = linear_assignment(costs.float(), [300]).numpy()
    block = costs.float().double().numpy()
    assert abs(optimality_gap(block, query)) <= 1e-10 * np.abs(block).max()


def test_certificate_rejects_a_worse_assignment() -> None:
    costs = np.random.default_rng(SEED).random((8, 12))
    rows, best = linear_sum_assignment(costs)
    assert abs(optimality_gap(costs, best)) < 1e-12
    worse = best.copy()
    worse[:2] = best[1], best[0]
    assert optimality_gap(costs, worse) > 1e-12
    assert len(rows) == 8


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32 - 1), largest=st.sampled_from([3, 8, 30])
)
def test_totals_equal_scipy(kind: str, seed: int, largest: int) -> None:
    costs, num_targets = batch(np.random.default_rng(seed), kind, largest)
    assert list(mismatches(costs, num_targets)) == []


@settings(max_examples=300, deadline=None)
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_small_integer_matrices_equal_scipy_exactly(data: st.DataObject, rows: int, columns: int) -> None:
    entries = st.one_of(st.integers(-4, 4), st.just(2**40)).map(float)
    flat = data.draw(st.lists(entries, min_size=rows * columns, max_size=rows * columns))
    costs = np.array(flat).reshape(rows, columns)
    ours, scipys = linear_assignment(costs), linear_sum_assignment(costs)
    assert costs[ours].sum() == costs[scipys].sum()
    assert sorted(set(ours[0])) == ours[0].tolist()
    assert len(set(ours[1])) == min(rows, columns)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 1), (1, 7), (7, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2", "i8", "u1", "i4", "?"])
def test_scipy_form(shape: tuple[int, int], maximize: bool, dtype: str) -> None:
    costs = (np.random.default_rng(SEED).integers(0, 200, shape) % 128).astype(dtype)
    wanted = linear_sum_assignment(costs, maximize=maximize)
    for got in (
        linear_assignment(costs, maximize=maximize),
        linear_assignment(costs[::-1, ::-1][::-1, ::-1]),
    ):
        assert all(isinstance(part, np.ndarray) and part.dtype == np.int64 for part in got)
    rows, columns = linear_assignment(costs, maximize=maximize)
    assert costs[rows, columns].sum(dtype=float) == costs[wanted].sum(dtype=float)
    np.testing.assert_array_equal(np.sort(rows), rows)
    if costs.dtype.isnative:
        tensors = linear_assignment(torch.from_numpy(costs), maximize=maximize)
        assert all(isinstance(part, Tensor) for part in tensors)
        np.testing.assert_array_equal(tensors[1].numpy(), columns)


def test_scipy_form_takes_lists_and_read_only_arrays() -> None:
    costs = np.array([[4.0, 1, 3], [2, 0, 5], [3, 2, 2]])
    costs.flags.writeable = False
    for form in (costs, costs.tolist(), costs[::-1][::-1], torch.tensor(costs.tolist(), requires_grad=True)):
        assert linear_assignment(form)[1].tolist() == [1, 0, 2]


def test_scipy_form_reads_arrays_wherever_they_lie() -> None:
    costs = np.random.default_rng(SEED).random((5, 8))
    expected = linear_assignment(costs)
    assert np.array_equal(expected, linear_sum_assignment(costs))
    record = np.zeros((5, 8), dtype=[("flag", "u1"), ("cost", "f8"), ("rest", "u1", 3)])
    record["cost"] = costs
    shifted = np.zeros(costs.nbytes + 1, dtype=np.uint8)[1:].view(np.float64).reshape(5, 8)
    shifted[:] = costs
    wide = np.full((10, 24), np.nan)
    wide[::2, ::3] = costs
    for form in (
        record["cost"],
        shifted,
        wide[::2, ::3],
        costs.T.copy().T,
        costs[::-1, ::-1].copy()[::-1, ::-1],
    ):
        assert np.array_equal(linear_assignment(form), expected)
        assert np.array_equal(linear_assignment(form, backend="reference"), expected)
    negated = torch._neg_view(torch.from_numpy(-costs))
    assert all(map(np.array_equal, linear_assignment(negated), expected))
    freed = torch.rand(3, 3)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="memory"):
        linear_assignment(freed)


def test_scipy_form_obeys_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(costs: np.ndarray) -> None:
        raise AssertionError("the pinned backend is another one")

    monkeypatch.setattr(cpu, "solve_matrix", fail)
    costs = np.random.default_rng(SEED).random((4, 4))
    with pytest.raises(AssertionError):
        linear_assignment(costs)
    expected = linear_sum_assignment(costs)
    for form in (costs, costs.tolist(), torch.from_numpy(costs)):
        assert all(map(np.array_equal, linear_assignment(form, backend="reference"), expected))
        with use_backend("reference"):
            assert all(map(np.array_equal, linear_assignment(form), expected))
        with pytest.raises(ValueError, match="auction"):
            linear_assignment(form, method="auction")


@pytest.mark.parametrize(
    "costs",
    [
        np.ones(3),
        np.ones((2, 2, 2)),
        3.0,
        [[1.0, np.nan]],
        [[-np.inf, 1.0]],
        [[np.inf, np.inf]],
        [[1.0, np.inf], [1.0, np.inf]],
        np.ones((2, 2), complex),
        np.array([["a"]]),
    ],
)
def test_scipy_form_raises_as_scipy(costs: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as theirs:
        linear_sum_assignment(costs)
    expected = str(theirs.value) if theirs.type is ValueError else "expected real numbers"
    with pytest.raises(theirs.type) as ours:
        linear_assignment(costs)
    assert expected in str(ours.value)


def test_status_names_infeasible_problems() -> None:
    costs = torch.rand(2, 5, 4)
    costs[1, 2:, 0:2] = torch.inf
    costs[1, 2:, 3] = torch.inf
    query, status = linear_assignment(costs, [2, 3], return_status=True)
    assert status.dtype == torch.int32
    assert status.tolist() == [[0, 0], [0, 1]]
    assert query[1, 2:].tolist() == [-1, -1, -1]
    assert bool((query[0] >= 0).all())
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match=r"cost matrix is infeasible: image 1 of leading index \(1,\)"):
            linear_assignment(costs, [2, 3], backend=backend)
        with pytest.raises(ValueError, match="cost matrix is infeasible: image 1 has no"):
            linear_assignment(costs[1], [2, 3], backend=backend)
    with pytest.raises(ValueError, match="return_status"):
        linear_assignment(costs[0], return_status=True)  # type: ignore[call-overload]


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_bad_entries_are_taken_only_where_unavoidable(bad: float) -> None:
    costs = torch.tensor([[1.0, 1000.0, bad], [bad, 1.0, 1000.0], [1000.0, bad, bad]])
    assert linear_assignment(costs, [3]).tolist() == [1, 2, 0]  # 3000 beats two 1s and one bad entry
    assert sorted(linear_assignment(torch.full((3, 5), bad), [3]).tolist()) != [-1, -1, -1]
    forbidden = torch.tensor([[bad, torch.inf], [torch.inf, 1.0]])
    assert linear_assignment(forbidden, [2]).tolist() == [0, 1]


def test_layout_batch_and_instruction_set_do_not_matter(rng: torch.Generator) -> None:
    costs = torch.randint(4, (3, 40, 25), generator=rng).float()
    num_targets = [12, 0, 28]
    expected = linear_assignment(costs, num_targets)
    wide = torch.full((3, 45, 60), torch.nan)
    wide[:, 2:42, 10:60:2] = costs
    for same in (
        costs.mT.contiguous().mT,
        wide[:, 2:42, 10:60:2],
        costs.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        assert torch.equal(linear_assignment(same, num_targets), expected)
    assert torch.equal(linear_assignment(costs.double(), num_targets), expected)
    alone = [linear_assignment(part, [part.shape[1]]) for part in costs.split(num_targets, dim=1)]
    assert torch.equal(torch.cat(alone, dim=1), expected)
    assert torch.equal(
        linear_assignment(costs[:1].expand(3, -1, -1), num_targets), expected[:1].expand(3, -1)
    )
    native = extension.extension()
    best = native.isa()
    try:
        for isa in ("baseline", best):
            native.set_isa(isa)
            assert torch.equal(linear_assignment(costs, num_targets), expected)
            assert torch.equal(linear_assignment(costs.mT.contiguous().mT, num_targets), expected)
    finally:
        native.set_isa(best)


@pytest.mark.parametrize("queries", [1, 2, 3, 7, 8, 9, 16, 33])
@pytest.mark.parametrize("targets", [1, 2, 3, 7, 8, 9, 16, 33])
def test_narrow_transposed_views_stay_inside_their_memory(queries: int, targets: int) -> None:
    # NaN right after the view would change the answer if it were read as a cost
    memory = torch.full((queries * targets + 64,), torch.nan)
    view = memory[: queries * targets].view(queries, targets).mT
    view.copy_(torch.rand(targets, queries))
    assert torch.equal(linear_assignment(view, [targets]), linear_assignment(view.contiguous(), [targets]))


def test_costs_that_require_grad_are_used_detached(rng: torch.Generator) -> None:
    costs = torch.rand(4, 6, generator=rng, requires_grad=True)
    query = linear_assignment(costs, [4])
    assert not query.requires_grad
    assert torch.equal(linear_assignment(torch.nn.Parameter(costs.detach()), [4]), query)
    costs.gather(1, query[:, None]).sum().backward()
    assert costs.grad is not None
    assert costs.grad.sum() == 4


def test_maximize(rng: torch.Generator) -> None:
    costs = torch.rand(2, 9, 6, generator=rng)
    assert torch.equal(linear_assignment(costs, [5, 4], maximize=True), linear_assignment(-costs, [5, 4]))


def test_calls_from_several_threads(rng: torch.Generator) -> None:
    costs = torch.rand(4, 60, 80, generator=rng)
    expected = linear_assignment(costs, [20, 40])
    results: list[Tensor] = []

    def work() -> None:
        results.extend(linear_assignment(costs, [20, 40]) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(torch.equal(result, expected) for result in results)


def test_compiles_with_dynamic_shapes_and_keeps_the_status(rng: torch.Generator) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def solve(costs: Tensor, num_targets: list[int]) -> tuple[Tensor, Tensor]:
        return linear_assignment(costs, num_targets, return_status=True)

    for num_targets, queries in (([3, 4], 9), ([5, 1], 12), ([2, 2], 3)):
        costs = torch.rand(2, sum(num_targets), queries, generator=rng)
        for actual, expected in zip(
            solve(costs, num_targets), linear_assignment(costs, num_targets, return_status=True), strict=True
        ):
            assert torch.equal(actual, expected)
