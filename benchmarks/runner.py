"""Runs suites, contract first, then the clock: on a CPU each peer beside ours, on a GPU each by itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from benchmarks.clocks import Clock, CudaClock, busy_loops, interleaved
from benchmarks.contract import ContractFailed
from benchmarks.suite import (
    BACKWARD,
    FORWARD,
    FORWARD_BACKWARD,
    RECORDED,
    Case,
    Contender,
    Row,
    Suite,
    all_suites,
)
from detr_fast.machine import torch_threads

SEED = 0
ALL_THREADS = torch.get_num_threads()  # before a run sets others
WEIGHTY_US = 5000.0  # of a slower kernel the call time says nothing
TIME_WAS_UP = {"left_out": "time was up"}


@dataclass(frozen=True)
class Plan:
    """What to run and how long.

    paired: each peer beside ours; else each contender alone, as on a GPU.
    threads: of paired runs, the thread counts, each for ours and the peer alike.
    operators: the suites to run, or a group as "busy" (None: all that run by default).
    budget_s: seconds of samples for one row, within `min_rounds` (fewer where the deadline is near) and
        `max_rounds` rounds where it is a pair.
    patience_s: how long each sample of a pair waits for other processes to stop.
    checked_queries: attention is compared with its reference for so many random queries (None: all).
    quick: only the cases and peers of the quick run.
    deadline_s: seconds after which nothing further begins.
    """

    device: str = "cpu"
    paired: bool = True
    threads: Sequence[int] = (1, 2)
    operators: Sequence[str] | None = None
    budget_s: float = 4.0
    min_rounds: int = 3
    max_rounds: int = 31
    patience_s: float = 0.3
    checked_queries: int | None = None
    quick: bool = False
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        known = sorted({name for suite in all_suites() for name in suite.names()})
        for operator in self.operators or ():
            if operator not in known:
                raise ValueError(f"operators: expected some of {', '.join(known)}; got {operator!r}")

    @staticmethod
    def of(device: str, quick: bool, alone: bool = False, **options: Any) -> Plan:
        """Everything, or the most telling within 50 seconds (on a CPU, one or two threads)."""
        limits: Row = {}
        if device != "cpu" or alone:
            queries, deadline_s = (128, 40.0) if quick else (256, 240.0)
            limits = {"paired": False, "checked_queries": queries, "budget_s": 0.1, "deadline_s": deadline_s}
        elif quick:
            limits = {"threads": (min(2, os.cpu_count() or 1),), "budget_s": 0.12, "min_rounds": 2}
            limits |= {"max_rounds": 9, "patience_s": 0.0, "checked_queries": 512, "deadline_s": 40.0}
        return Plan(device, quick=quick, **(limits | options))

    def chosen(self, suites: Sequence[Suite]) -> list[tuple[Suite, Case]]:
        """Suites and cases in the order of the run: alone, quick ones first, models after operators."""
        named = set(self.operators or ())
        wanted = [s for s in suites if s.names() & named or (not named and (s.by_default or not self.paired))]
        pairs = [(s, case) for s in wanted for case in (s.cases if self.paired else s.gpu_cases)]
        pairs = [(suite, case) for suite, case in pairs if case.quick or not self.quick]
        if self.paired:
            return pairs
        return sorted(pairs, key=lambda pair: (not pair[1].quick, not pair[0].by_default))


@dataclass
class Subject:
    """A case's inputs, and the references that results are compared with; made when first asked for."""

    suite: Suite
    case: Case
    device: str = "cpu"
    queries: int | None = None
    seed: int = SEED
    _expected: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Any:
        """Of the timed calls."""
        return self.case.inputs(self._generator())

    @cached_property
    def to_check(self) -> Any:
        """Of the call whose result is compared."""
        return self.suite.to_check(self.case, self.inputs, self._generator(), self.queries)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    def check(self, contender: Contender, pass_: str) -> float:
        """Seconds of a first call, whose result has met the contract; raises ContractFailed otherwise."""
        pass_ = FORWARD_BACKWARD if pass_ == BACKWARD else pass_
        try:
            if pass_ not in self._expected:
                with torch_threads(ALL_THREADS):
                    self._expected[pass_] = self.suite.expected_of(self.case, self.to_check, pass_)
            call = contender.prepare(self.to_check, pass_)
            if contender.compiles_s:
                call()
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            found = contender.canonical(result, self.to_check)
            self.suite.verify(self._expected[pass_], found)
            if contender.repeatable:
                again = contender.canonical(call(), self.to_check)
                if different := [name for name in found if not torch.equal(found[name], again[name])]:
                    raise ContractFailed(f"{', '.join(different)}: two runs differ")
        except ContractFailed as error:
            raise ContractFailed(f"{contender.name}: {error}") from None
        except Exception as error:  # a crash of one contender must not end the benchmark of the others
            raise ContractFailed(f"{contender.name} raised {first_line(error)}") from error
        return seconds

    def copies(self, cache_bytes: int) -> list[Any]:
        """The inputs and copies to rotate among, so that no call finds its own in a cache of that size.

        Together they hold three times the cache; a call that alone moves eight times as much needs no copy.
        """
        size = sum(t.numel() * t.element_size() for t in self.inputs.tensors()) if self.suite.cold else 0
        if not size or size >= 8 * cache_bytes:
            return [self.inputs]
        count = min(96, max(2, math.ceil(3 * cache_bytes / size)))
        return [self.inputs, *(self.inputs.copy() for _ in range(count - 1))]


class Runner:
    """One run of a plan. rates: of the device, for the floors of a run of contenders alone."""

    def __init__(self, plan: Plan, suites: Sequence[Suite] | None = None) -> None:
        self.plan, self.device = plan, torch.device(plan.device)
        self.chosen = plan.chosen(all_suites() if suites is None else suites)
        self.clock = CudaClock(self.device) if self.device.type == "cuda" else Clock()
        self.started = time.perf_counter()
        self.lost = ""
        if not plan.paired:
            self.rates = self.clock.rates()

    def run(self) -> Iterator[Row]:
        """A row for each pair or contender of each case and pass.

        Rows of pairs have operator, case, pass, threads and peer, and a goal where there is one; timed ones
        add what `interleaved` returns. Rows of one contender have operator, case, dtype, form, pass and
        contender; timed ones add kernel_us (the device's work), wall_us (a call until the device has done its
        work), floor_us and how they were timed.

        Others (ratio: None in pairs) say why: `failed` or `peer_failed` (the result broke the contract, so
        that nothing was timed), `missing` (not usable here) or `left_out` (time was up).
        """
        for suite, case in self.chosen:
            subject = Subject(suite, case, self.plan.device, self.plan.checked_queries)
            if self.plan.paired:
                yield from self._pairs(subject)
            else:
                # The stream stays current between rows only here: a consumer of the rows has its own.
                with self.clock.context():
                    rows = list(self._each(subject))
                yield from rows

    def missing(self) -> dict[str, str]:
        """The peers of a paired run that this environment lacks, with the reasons."""
        peers = [peer for suite, case in self.chosen for peer in suite.contenders(case)]
        return {peer.name: peer.missing for peer in peers if peer.missing}

    def _remaining_s(self) -> float:
        return self.plan.deadline_s - (time.perf_counter() - self.started)

    def _pairs(self, subject: Subject) -> Iterator[Row]:
        suite, case = subject.suite, subject.case
        contenders = {contender.name: contender for contender in suite.contenders(case)}
        peers = [c for c in contenders.values() if not c.ours and not c.missing]
        for pass_ in case.passes:
            for threads in self.plan.threads:
                for peer in (peer for peer in peers if peer.quick or not self.plan.quick):
                    row: Row = {"operator": suite.operator, "case": case.name, "pass": pass_}
                    row |= {"threads": threads, "peer": peer.name}
                    if (goal := suite.goal(case.name, pass_, peer.name, threads)) is not None:
                        row["goal"] = goal
                    with torch_threads(threads):
                        timed = self._pair(subject, pass_, contenders[peer.beside], peer)
                    yield {**row, **({} if "ratio" in timed else {"ratio": None}), **timed}

    def _pair(self, subject: Subject, pass_: str, ours: Contender, peer: Contender) -> Row:
        plan, busy = self.plan, subject.suite.busy
        if self._remaining_s() <= peer.compiles_s:
            return TIME_WAS_UP
        whose = "failed"
        try:
            ours_s = subject.check(ours, pass_)
            whose = "peer_failed"
            peer_s = subject.check(peer, pass_)
        except ContractFailed as error:
            return {whose: str(error)}
        affordable = self._remaining_s() / (ours_s + peer_s)
        if affordable < 1:
            return TIME_WAS_UP
        with busy_loops(os.cpu_count() or 1) if busy else nullcontext():
            return interleaved(
                ours.prepare(subject.inputs, pass_),
                peer.prepare(subject.inputs, pass_),
                (ours_s, peer_s),
                budget_s=plan.budget_s,
                min_rounds=int(min(plan.min_rounds, affordable)),
                max_rounds=plan.max_rounds,
                patience_s=0.0 if busy else plan.patience_s,
            )

    def _each(self, subject: Subject) -> Iterator[Row]:
        suite, case = subject.suite, subject.case
        contenders = suite.alone(case, self.device)
        for pass_ in case.passes:
            for contender in (contender for contender in contenders if pass_ in contender.passes):
                row: Row = {"operator": suite.operator, "case": case.name}
                row |= {"dtype": getattr(case, "dtype", "fp32"), "form": getattr(case, "form", "")}
                row |= {"pass": pass_, "contender": contender.name}
                yield {**row, **self._alone(subject, pass_, contender)}

    def _alone(self, subject: Subject, pass_: str, contender: Contender) -> Row:
        if contender.missing:
            return {"missing": contender.missing}
        if self.lost:
            return {"left_out": f"the device failed in {self.lost}"}
        if self._remaining_s() <= contender.compiles_s:
            return TIME_WAS_UP
        try:
            subject.check(contender, pass_)
            return self._times(subject, pass_, contender)
        except Exception as error:
            if not self.clock.works():
                self.lost = contender.name
            reason = str(error) if isinstance(error, ContractFailed) else first_line(error)
            return {"failed" if contender.ours else "peer_failed": reason}

    def _times(self, subject: Subject, pass_: str, contender: Contender) -> Row:
        """The timed part of a contender's row."""
        budget_s = min(self.plan.budget_s, max(0.02, self._remaining_s() / 4))
        sets = subject.copies(self.clock.cache_bytes)
        calls = [contender.prepare(inputs, pass_) for inputs in sets]
        calls[0]()
        wall = self.clock.step(calls[0], budget_s / 4)
        row = wall if contender.waits else self.clock.kernel(calls, budget_s)
        call_us, kernel_us = None, row["kernel_us"]
        if subject.suite.cold and kernel_us < WEIGHTY_US:
            # until a call returns to Python, what autograd records included
            recorded = contender.prepare(sets[0], RECORDED) if pass_ == FORWARD else calls[0]
            call_us = self.clock.call(recorded, kernel_us)
        work = subject.suite.work(subject.inputs, pass_)
        floor_us = self.rates.floor_us(work)
        row = {**row, "wall_us": wall["kernel_us"], "call_us": call_us, "input_sets": len(sets)}
        row |= {"device_bytes": work.bytes, "floor_us": floor_us, "over_floor": kernel_us / floor_us}
        if work.flops:
            row["flops"] = work.flops
        if work.gather is not None:
            row |= {"gather_bytes": work.gather, "gather_us": 1e6 * work.gather / self.rates.cached_copy}
        return row


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
