"""Runs cases against peers: contract first, then the clock."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import goals
from benchmarks.cases import CASES, AttentionInputs, Case, MaskInputs
from benchmarks.contract import Contract, ContractFailed
from benchmarks.peers import Contender, Peer, all_peers
from benchmarks.timing import interleaved
from detr_fast.machine import torch_threads

Row = dict[str, Any]
SEED = 0


@dataclass(frozen=True)
class Plan:
    """What to run and how long.

    threads: the thread counts, each for ours and the peer alike.
    operators: the operators to run (None: all).
    budget_s: seconds of samples for one comparison, within `min_rounds` (fewer where the deadline is near)
        and `max_rounds` rounds.
    patience_s: how long each sample waits for other processes to stop.
    checked_queries: attention is compared with its reference for so many random queries (None: all).
    quick: only the peers of the quick run.
    deadline_s: seconds after which no further comparison begins.
    """

    threads: Sequence[int] = (1, 2)
    operators: Sequence[str] | None = None
    budget_s: float = 4.0
    min_rounds: int = 3
    max_rounds: int = 31
    patience_s: float = 0.3
    checked_queries: int | None = None
    quick: bool = False
    deadline_s: float = float("inf")

    def __post_init__(self) -> None:
        known = sorted({case.operator for case in CASES})
        for operator in self.operators or ():
            if operator not in known:
                raise ValueError(f"operators: expected some of {', '.join(known)}; got {operator!r}")


def run(plan: Plan, cases: Sequence[Case] = CASES, peers: Sequence[Peer] | None = None) -> Iterator[Row]:
    """One row a comparison.

    A row has operator, case, pass, threads and peer. Timed rows add ours_ms, peer_ms and ratio = peer_ms /
    ours_ms with the rest of `Timing`. Others have ratio None and say why: `failed` or `peer_failed` (our or
    the peer's result broke the contract, so nothing was timed) or `left_out` (time was up). Rows with a
    goal carry it.
    """
    started = time.perf_counter()
    peers = all_peers() if peers is None else peers
    for case in cases:
        if plan.operators is not None and case.operator not in plan.operators:
            continue
        chosen = [
            p for p in peers if p.operator == case.operator and not p.missing and (p.quick or not plan.quick)
        ]
        if not chosen:
            continue
        inputs = case.inputs(torch.Generator().manual_seed(SEED))
        for pass_ in case.passes:
            comparison = Comparison(case, pass_, inputs, plan.checked_queries)
            for threads in plan.threads:
                for peer in chosen:
                    remaining_s = plan.deadline_s - (time.perf_counter() - started)
                    with torch_threads(threads):
                        row = comparison.row(peer, plan, threads, remaining_s)
                    yield row


def left_out_peers(plan: Plan, peers: Sequence[Peer] | None = None) -> dict[str, str]:
    """The peers that this environment lacks, with the reasons."""
    peers = all_peers() if peers is None else peers
    wanted = [p for p in peers if plan.operators is None or p.operator in plan.operators]
    return {peer.name: peer.missing for peer in wanted if peer.missing}


def median_rows(rows: Sequence[Row]) -> list[Row]:
    """For each assignment peer and thread count the median ratio over all cases but the smallest."""
    groups: dict[tuple[str, int], list[float | None]] = {}
    for row in rows:
        if row["operator"] == "linear_assignment" and row["case"] != "1x1 random":
            groups.setdefault((row["peer"], row["threads"]), []).append(row["ratio"])
    medians = []
    for (peer, threads), ratios in groups.items():
        timed = [ratio for ratio in ratios if ratio is not None]
        if len(timed) != len(ratios):
            continue
        summary: Row = {
            "operator": "linear_assignment",
            "case": f"median of {len(timed)} cases",
            "pass": "forward",
            "threads": threads,
            "peer": peer,
            "ratio": statistics.median(timed),
        }
        if peer == goals.SCIPY and threads == 2:
            summary["goal"] = goals.ASSIGNMENT_MEDIAN
        medians.append(summary)
    return medians


class Comparison:
    """One case and pass, whose reference is computed once for all peers and thread counts."""

    def __init__(self, case: Case, pass_: str, inputs: Any, checked_queries: int | None = None) -> None:
        self.case, self.pass_, self.inputs = case, pass_, inputs
        self._to_check = inputs
        if checked_queries is not None and isinstance(inputs, AttentionInputs):
            self._to_check = inputs.sampled(checked_queries, torch.Generator().manual_seed(SEED))
        if isinstance(inputs, MaskInputs):
            self._to_check = inputs.drawn(torch.Generator().manual_seed(SEED))
        self._expected: dict[int, Any] = {}

    def row(self, peer: Peer, plan: Plan, threads: int, remaining_s: float) -> Row:
        """Checks and times one peer and ours; see `run` for what the row holds."""
        row: Row = {
            "operator": self.case.operator,
            "case": self.case.name,
            "pass": self.pass_,
            "threads": threads,
            "peer": peer.name,
        }
        goal = goals.goal(self.case.operator, self.case.name, self.pass_, peer.name, threads)
        if goal is not None:
            row["goal"] = goal
        if remaining_s <= 0:
            return {**row, "ratio": None, "left_out": "time was up"}
        try:
            ours_s = self.check(peer.ours, peer.contract, threads)
        except ContractFailed as error:
            return {**row, "ratio": None, "failed": str(error)}
        try:
            peer_s = self.check(peer.theirs, peer.contract, threads)
        except ContractFailed as error:
            return {**row, "ratio": None, "peer_failed": str(error)}
        affordable = remaining_s / (ours_s + peer_s)
        if affordable < 1:
            return {**row, "ratio": None, "left_out": "time was up"}
        timing = interleaved(
            peer.ours.prepare(self.inputs, self.pass_, threads),
            peer.theirs.prepare(self.inputs, self.pass_, threads),
            budget_s=plan.budget_s,
            min_rounds=int(min(plan.min_rounds, affordable)),
            max_rounds=plan.max_rounds,
            patience_s=plan.patience_s,
            first_s=(ours_s, peer_s),
        )
        return {
            **row,
            "ours_ms": timing.ours_ms,
            "peer_ms": timing.peer_ms,
            "ratio": timing.ratio,
            "ours_spread": round(timing.ours_spread, 3),
            "peer_spread": round(timing.peer_spread, 3),
            "rounds": timing.rounds,
            "busy": round(timing.busy, 3),
        }

    def check(self, contender: Contender, contract: Contract, threads: int) -> float:
        """Seconds of a first call, whose result has met the contract; raises ContractFailed otherwise."""
        if id(contract) not in self._expected:
            with torch_threads(os.cpu_count() or 1):
                self._expected[id(contract)] = contract.expected(self._to_check, self.pass_)
        try:
            call = contender.prepare(self._to_check, self.pass_, threads)
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            contract.verify(self._expected[id(contract)], contender.canonical(result, self._to_check))
        except ContractFailed as error:
            raise ContractFailed(f"{contender.name}: {error}") from None
        except Exception as error:  # a crash of one contender must not end the benchmark of the others
            raise ContractFailed(f"{contender.name} raised {type(error).__name__}: {error}") from error
        return seconds
