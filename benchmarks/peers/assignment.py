"""Linear assignment: ours, scipy in both orientations, py-lap-solver, lapx and lap."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import contract, goals
from benchmarks.cases import AssignmentInputs
from benchmarks.peers.peer import Call, Contender, Peer, from_pairs, import_peer
from detr_fast.ops import linear_assignment


def _split_queries(result: Tensor, inputs: AssignmentInputs) -> Sequence[Tensor]:
    return result.flatten().split(inputs.sizes)


def _ours_assignment(query_major: bool) -> Contender:
    def prepare(inputs: AssignmentInputs, pass_: str, threads: int) -> Call:
        if query_major:
            return lambda: linear_assignment(inputs.query_major.transpose(1, 2), inputs.sizes[:1])
        return lambda: linear_assignment(inputs.target_major, inputs.sizes)

    return Contender("detr_fast, (Q, T) matrices" if query_major else "detr_fast", prepare, _split_queries)


def _batch(inputs: AssignmentInputs, query_major: bool) -> Any:
    """[B, Q, T] or [B, T, Q] costs as a contiguous NumPy array."""
    if query_major:
        return inputs.query_major.numpy()
    return inputs.target_major.view(len(inputs.sizes), inputs.sizes[0], -1).numpy()


def _scipy(query_major: bool) -> Contender:
    def prepare(inputs: AssignmentInputs, pass_: str, threads: int) -> Call:
        costs = _batch(inputs, query_major)
        return lambda: [linear_sum_assignment(cost) for cost in costs]

    def canonical(result: Any, inputs: AssignmentInputs) -> list[Tensor]:
        if query_major:
            result = [(columns, rows) for rows, columns in result]
        return from_pairs(result, inputs.sizes)

    return Contender(goals.SCIPY if query_major else "scipy, (T, Q) matrices", prepare, canonical)


def _lap(module: Any) -> Contender:
    def prepare(inputs: AssignmentInputs, pass_: str, threads: int) -> Call:
        costs = _batch(inputs, query_major=False)
        return lambda: [module.lapjv(cost, extend_cost=True, return_cost=False)[0] for cost in costs]

    return Contender(
        "lap", prepare, lambda result, inputs: [torch.as_tensor(x, dtype=torch.int64) for x in result]
    )


def _lapx(module: Any) -> Contender:
    """lapx's Rust batch solver, the only one of its solvers that does not pad to a square."""

    def prepare(inputs: AssignmentInputs, pass_: str, threads: int) -> Call:
        costs = _batch(inputs, query_major=False)
        return lambda: module.lapjvr_batch(costs, extend_cost=True, return_cost=False, n_threads=threads)

    return Contender(
        "lapx", prepare, lambda result, inputs: from_pairs(zip(*result, strict=True), inputs.sizes)
    )


def _py_lap_solver(module: Any) -> Contender:
    def prepare(inputs: AssignmentInputs, pass_: str, threads: int) -> Call:
        solver = module.BatchedScipySolver(use_openmp=threads > 1)
        if threads > 1:
            _set_bundled_openmp_threads(Path(module.__file__), threads)
        costs = _batch(inputs, query_major=False)
        return lambda: solver.batch_solve(costs)

    return Contender(
        goals.PY_LAP_SOLVER, prepare, lambda result, inputs: list(torch.as_tensor(result, dtype=torch.int64))
    )


def _set_bundled_openmp_threads(module_file: Path, threads: int) -> None:
    """Sets the thread count of the OpenMP runtime that py-lap-solver's wheel brings along."""
    for library in module_file.parents[2].glob("py_lap_solver.libs/libgomp*"):
        ctypes.CDLL(str(library)).omp_set_num_threads(threads)


def peers() -> list[Peer]:
    lap, no_lap = import_peer("lap")
    # lap and lapx install into the same folder; where lap came last, lapx's solver is still beneath it
    lapx, no_lapx = (lap, None) if hasattr(lap, "lapjvr_batch") else import_peer("lap._lapjv_rh")
    pls, no_pls = import_peer("py_lap_solver.solvers")
    target_major, query_major = _ours_assignment(query_major=False), _ours_assignment(query_major=True)

    def peer(theirs: Contender, ours: Contender = target_major, **options: Any) -> Peer:
        return Peer("linear_assignment", theirs, ours, contract.ASSIGNMENT, **options)

    return [
        peer(_scipy(query_major=True), query_major),
        peer(_scipy(query_major=False), quick=False),
        peer(_py_lap_solver(pls), missing=no_pls),
        peer(_lapx(lapx), missing=no_lapx),
        peer(_lap(lap), missing=no_lap, quick=False),
    ]
