"""Assignment beside scipy in both orientations, py-lap-solver, the lap family and GPU solvers."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from benchmarks.contract import Matching, from_pairs, verify_matching
from benchmarks.peers.gpu_assignment import BIRDER, TORCH_LINEAR_ASSIGNMENT, Solver, gpu_solvers
from benchmarks.suite import (
    CUDA,
    FORWARD,
    OURS,
    Call,
    Contender,
    Goal,
    Row,
    Suite,
    Work,
    extreme,
    import_peer,
    measured,
    pinned,
    size_of,
)
from benchmarks.suites.detection import Detection
from detr_fast.ops import box_match_cost, linear_assignment

OPERATOR = "linear_assignment"
QUERY_MAJOR, TARGET_MAJOR = "(Q, T) matrices", "(T, Q) matrices"
SCIPY, PY_LAP_SOLVER = f"scipy, {QUERY_MAJOR}", "py-lap-solver"
LAPX, LAPRUST, LAPCPP = "lapx", "laprust", "lapcpp"
SCIPY_ON_HOST, AUCTION = "scipy on the host, copies included", ", auction"


@dataclass(frozen=True)
class Inputs:
    """The same costs in both layouts: query_major [B, Q, T] as models make them, target_major [B*T, Q]."""

    query_major: Tensor
    target_major: Tensor
    num_targets: tuple[int, ...]

    def batch(self) -> Tensor:
        """[B, T, Q]: problems of one size need no padding."""
        return self.target_major.view(len(self.num_targets), self.num_targets[0], -1)


@dataclass(frozen=True)
class Assignment:
    """A batch of equally sized problems.

    random: independent uniform costs. clustered: DETR's costs of predictions jittered around the
    targets, as late in training. early: DETR's costs of nearly identical predictions, as at its start.
    """

    queries: int
    targets: int
    kind: str
    images: int = 16
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD,)

    @property
    def name(self) -> str:
        images = f" B={self.images}" if self.images > 16 else ""
        return f"{self.queries}x{self.targets} {self.kind}{images}"

    def inputs(self, generator: Generator) -> Inputs:
        B, Q, T = self.images, self.queries, self.targets
        if self.kind == "random":
            costs = torch.rand(B, T, Q, generator=generator, device=generator.device)
        else:
            made = Detection("", Q, (T,) * B, layers=1, kind=self.kind).inputs(generator)
            logits, boxes = made.predictions.logits[0], made.predictions.boxes[0]
            costs = box_match_cost(logits, boxes, made.labels, made.boxes, made.num_targets).view(B, T, Q)
        return Inputs(costs.mT.contiguous(), costs.reshape(B * T, Q).contiguous(), (T,) * B)


def _queries(result: Tensor, inputs: Inputs) -> Sequence[Tensor]:
    return result.long().cpu().flatten().split(inputs.num_targets)


def _pairs(result: Any, inputs: Inputs) -> list[Tensor]:
    return from_pairs(result, inputs.num_targets)


def _ours(inputs: Inputs, pass_: str, **options: Any) -> Call:
    costs, num_targets = inputs.target_major, inputs.num_targets
    return lambda: linear_assignment(costs, num_targets, **options)


def _ours_query_major(inputs: Inputs, pass_: str) -> Call:
    costs, num_targets = inputs.query_major, inputs.num_targets[:1]
    return lambda: linear_assignment(costs.transpose(1, 2), num_targets)


def _solve_each(
    of: Callable[[Inputs], Tensor], solve: Callable[[Any], Any], inputs: Inputs, pass_: str
) -> Call:
    """`solve` on one NumPy matrix after the other."""
    costs = of(inputs).numpy()
    return lambda: [solve(cost) for cost in costs]


def _solve_batch(bind: Callable[[int], Callable[[Any], Any]], inputs: Inputs, pass_: str) -> Call:
    """A solver of NumPy's [B, T, Q], bound to torch's number of threads."""
    costs, solve = inputs.batch().numpy(), bind(torch.get_num_threads())
    return lambda: solve(costs)


def _py_lap_solver(module: Any, threads: int) -> Callable[[Any], Any]:
    if threads > 1:  # of the OpenMP runtime that the wheel brings along
        for library in Path(module.__file__).parents[2].glob("py_lap_solver.libs/libgomp*"):
            ctypes.CDLL(str(library)).omp_set_num_threads(threads)
    solve: Callable[[Any], Any] = module.BatchedScipySolver(use_openmp=threads > 1).batch_solve
    return solve


def _threaded(module: Any, solver: str, threads: int) -> Callable[[Any], Any]:
    """The batch solvers of one author, which share their signature."""
    return partial(getattr(module, solver), extend_cost=True, return_cost=False, n_threads=threads)


def _contenders(case: Assignment) -> list[Contender]:
    lap, no_lap = import_peer("lap")
    # lap and lapx install into the same folder; where lap came last, lapx's solver is still beneath it
    lapx, no_lapx = (lap, None) if hasattr(lap, "lapjvr_batch") else import_peer("lap._lapjv_rh")
    pls, no_pls = import_peer("py_lap_solver.solvers")
    (rust, no_rust), (cpp, no_cpp) = import_peer(LAPRUST), import_peer(LAPCPP)

    def swapped(result: Any, inputs: Inputs) -> list[Tensor]:
        return _pairs([(columns, rows) for rows, columns in result], inputs)

    def as_it_is(result: Any, inputs: Inputs) -> list[Tensor]:
        return [torch.as_tensor(queries, dtype=torch.int64) for queries in result]

    def by_lap(cost: Any) -> Any:
        return lap.lapjv(cost, extend_cost=True, return_cost=False)[0]

    def batched(name: str, module: Any, solver: str, missing: str | None, **options: Any) -> Contender:
        prepare = partial(_solve_batch, partial(_threaded, module, solver))
        return Contender(
            name, prepare, lambda r, i: _pairs(zip(*r, strict=True), i), missing=missing, **options
        )

    ours = f"{OURS}, {QUERY_MAJOR}"
    by_query, by_target = (lambda inputs: inputs.query_major), Inputs.batch
    by_scipy = linear_sum_assignment
    return [
        Contender(OURS, _ours, _queries, ours=True),
        Contender(ours, _ours_query_major, _queries, ours=True),
        Contender(SCIPY, partial(_solve_each, by_query, by_scipy), swapped, beside=ours),
        Contender(f"scipy, {TARGET_MAJOR}", partial(_solve_each, by_target, by_scipy), _pairs, quick=False),
        Contender(
            PY_LAP_SOLVER, partial(_solve_batch, partial(_py_lap_solver, pls)), as_it_is, missing=no_pls
        ),
        # of lapx's solvers the only one that does not pad to a square
        batched(LAPX, lapx, "lapjvr_batch", no_lapx),
        batched(LAPRUST, rust, "lapjv_batch", no_rust, quick=False),
        batched(LAPCPP, cpp, "lapjv_batch", no_cpp, quick=False),
        # ours against ours: what a transposed view costs
        Contender(f"{OURS}, {TARGET_MAJOR}", _ours, _queries, beside=ours, quick=False),
        Contender("lap", partial(_solve_each, by_target, by_lap), as_it_is, missing=no_lap, quick=False),
    ]


def _scipy_on_host(inputs: Inputs, pass_: str) -> Call:
    """Costs to the host in one copy, a problem after the other there, the queries back in one copy."""
    costs = inputs.batch()

    def call() -> list[tuple[Any, Any]]:
        pairs = [linear_sum_assignment(cost) for cost in costs.cpu().numpy()]
        torch.cat([torch.from_numpy(query) for _, query in pairs]).to(costs.device)
        return pairs

    return call


def _gpu_contenders(case: Assignment, device: torch.device) -> list[Contender]:
    ours = pinned(Contender("", _ours, _queries, ours=True), (OPERATOR,), device)
    cuda = next(contender for contender in ours if contender.name == CUDA)
    by_auction = partial(_ours, backend=CUDA, method="auction")

    def solve(solver: Solver, inputs: Inputs, pass_: str) -> Call:
        costs = inputs.batch()
        return lambda: solver(costs)

    return [
        *ours,
        replace(cuda, name=CUDA + AUCTION, prepare=by_auction),
        *gpu_solvers("", solve, _queries, device),
        Contender(SCIPY_ON_HOST, _scipy_on_host, _pairs, waits=True),
    ]


def _expected(inputs: Inputs, pass_: str) -> Matching:
    return Matching(inputs.target_major.split(inputs.num_targets), 1e-6)


def _work(inputs: Inputs, pass_: str) -> Work:
    return Work(size_of(inputs.target_major) + 8 * len(inputs.target_major))


def _goal(case: str, pass_: str, peer: str, threads: int) -> float | None:
    if threads == 2 and case in {c.name for c in BATCHES} and peer in (SCIPY, PY_LAP_SOLVER):
        return 5.0 if peer == SCIPY else 3.0
    if threads <= 2 and peer in (LAPX, LAPRUST, LAPCPP) and case != SMALLEST.name:
        return 1.2 if case in {c.name for c in SQUARES} else 1.3
    return None


def median_rows(rows: Sequence[Row]) -> list[Row]:
    """For each peer and thread count the median ratio over the batches of 16, where all were measured."""
    names = {case.name for case in BATCHES}
    groups: dict[tuple[str, int], list[Any]] = {}
    for row in rows:
        if row["operator"] == OPERATOR and row["case"] in names:
            groups.setdefault((row["peer"], row["threads"]), []).append(row["ratio"])
    medians = []
    for (peer, threads), ratios in groups.items():
        if None not in ratios:
            row = {"operator": OPERATOR, "case": f"median of {len(ratios)} cases", "pass": FORWARD}
            row |= {"threads": threads, "peer": peer, "ratio": statistics.median(ratios)}
            medians.append(row | ({"goal": 10.0} if peer == SCIPY and threads == 2 else {}))
    return medians


def _gpu_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """On an H100."""
    for images in (16, 96):
        names = {case.name for case in BATCHES + STEPS if case.images == images}
        of_size = [row for row in rows if row["case"] in names]
        for title, peers, limit in (
            ("best peer on the device / ours", (TORCH_LINEAR_ASSIGNMENT, BIRDER), 5.0),
            ("scipy with copies / ours", (SCIPY_ON_HOST,), 50.0),
        ):
            worst, where = extreme(min, of_size, peers, CUDA, "case")
            yield Goal(f"assignment B={images}, {title}, worst case{where}", "x", "at_least", limit, worst)
    early = measured(rows, case="900x300 early", contender=CUDA)
    yield Goal("assignment 900x300 early", "us", "at_most", 2000.0, early)


BATCHES = tuple(
    Assignment(queries, targets, kind)
    for queries, targets in ((100, 7), (100, 20), (300, 30), (300, 100), (900, 50), (900, 300))
    for kind in ("random", "clustered", "early")
)
# the layers and images of one step together
STEPS = tuple(replace(case, images=96, quick=False) for case in BATCHES)
SMALLEST = Assignment(1, 1, "random", images=1)
SQUARES = tuple(
    Assignment(side, side, kind, images=1, quick=False)
    for side in (300, 1000)
    for kind in ("random", "early")
)
QUICK_ON_GPU = ("300x30 clustered", "300x100 clustered", "900x300 early")
SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        _work,
        cases=[SMALLEST, *BATCHES, *STEPS, *SQUARES],
        gpu_cases=[*(replace(case, quick=case.name in QUICK_ON_GPU) for case in BATCHES), *STEPS],
        tiny=[Assignment(9, 4, "clustered", images=3), Assignment(9, 3, "random", images=2)],
        gpu_contenders=_gpu_contenders,
        expected=_expected,
        verify=verify_matching,
        goal=_goal,
        gpu_goals=_gpu_goals,
        summary=median_rows,
    )
]
