"""Runs the GPU cases: contract first, then the clock, the weightiest rows first, until time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import contract
from benchmarks.cases import AttentionInputs
from benchmarks.contract import ContractFailed
from benchmarks.gpu.cases import ARGUMENTS, FUSED, JOBS, Job, cast, rotation
from benchmarks.gpu.clock import CudaClock, WallClock, make_clock
from benchmarks.gpu.contenders import Contender, Function, contenders
from benchmarks.gpu.floors import Touched, microseconds, touched, traffic
from benchmarks.gpu.matching_cases import MATCHING_JOBS, MatchingJob
from benchmarks.gpu.matching_suite import Rates, matching_rows

Row = dict[str, Any]
SEED = 0
ATTENTION = "ms_deform_attn"
FORWARD, BACKWARD = "forward", "backward"
COMPILE_S = 45.0  # compiling cannot be interrupted, so it begins only with so much time left
WEIGHTY_US = 5000.0  # of a slower kernel the call time says nothing


@dataclass(frozen=True)
class GpuPlan:
    """What to run and how long.

    device: of the run; "cpu" is a trial of the suite with the backends that serve the CPU.
    jobs: of attention. matching: all other cases, which come first.
    matching_share: of `deadline_s`; what matching leaves of it is attention's.
    budget_s: seconds of samples for one row, where the deadline allows.
    checked_queries: each result is compared with its reference for so many random queries.
    deadline_s: seconds after which no further contender begins.
    """

    device: str = "cuda"
    jobs: Sequence[Job] = JOBS
    matching: Sequence[MatchingJob] = MATCHING_JOBS
    matching_share: float = 0.6
    budget_s: float = 0.2
    checked_queries: int = 256
    deadline_s: float = 240.0

    def only(self, operators: Sequence[str]) -> GpuPlan:
        """The cases of these operators: ms_deform_attn, linear_assignment, matcher, criterion, model, ..."""
        known = (ATTENTION, *sorted({job.case.operator for job in MATCHING_JOBS}))
        if unknown := [name for name in operators if name not in known]:
            raise ValueError(f"operators: on a GPU expected some of {', '.join(known)}; got {unknown[0]!r}")
        return replace(
            self,
            jobs=self.jobs if ATTENTION in operators else (),
            matching=tuple(job for job in self.matching if job.case.operator in operators),
        )


class Suite:
    """rates: bytes a second of copies in device memory and in the cache.

    product_rates: operations a second of matrix products, by precision.
    """

    def __init__(self, plan: GpuPlan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.clock: CudaClock | WallClock = make_clock(self.device)
        self.started = time.perf_counter()
        self.lost = ""
        self.rates = self.clock.copy_rates()
        self.product_rates = self.clock.product_rates() if plan.matching else {}

    def run(self) -> Iterator[Row]:
        """The rows of matching (see `matching_rows`), then one for each contender and pass of each job.

        Rows have case, dtype, form, pass and contender. Timed ones add kernel_us, call_us (None where
        the kernel is slow), floor_us, gather_us and how they were timed; others say why not: `missing`
        (not usable here), `failed` (its result broke the contract or it raised) or `left_out`.
        """
        yield from matching_rows(
            self.plan.matching,
            self.device,
            self.clock,
            Rates(self.rates[0], self.product_rates),
            self.plan.budget_s / 4,
            self.plan.deadline_s * (self.plan.matching_share if self.plan.jobs else 1.0),
        )
        reached: dict[str, Touched] = {}
        for job in self.plan.jobs:
            if reason := self._over(job):
                for contender in contenders(job, self.device):
                    yield from _untimed(job, contender, "left_out", reason)
                continue
            # The stream stays current between rows only here: a consumer of the rows has its own.
            with self.clock.context():
                rows = list(self._job(job, reached))
            yield from rows

    def _over(self, job: Job | None = None) -> str:
        if self.lost:
            return f"the device failed in {self.lost}"
        needed = COMPILE_S if job is not None and job.compiled else 0.0
        return "time was up" if self._remaining_s() <= needed else ""

    def _remaining_s(self) -> float:
        return self.plan.deadline_s - (time.perf_counter() - self.started)

    def _job(self, job: Job, reached: dict[str, Touched]) -> Iterator[Row]:
        inputs = cast(job.case.inputs(torch.Generator(self.device).manual_seed(SEED)), job.precision)
        if job.case.name not in reached:
            reached[job.case.name] = touched(inputs)
        generator = torch.Generator(self.device).manual_seed(SEED)
        to_check = inputs.sampled(self.plan.checked_queries, generator)
        rule = contract.FUSED_ATTENTION if job.form == FUSED else contract.ATTENTION
        expected: Any = None
        sets = rotation(inputs, job.form, self.clock.cache_bytes)
        for contender in contenders(job, self.device):
            if contender.missing:
                yield from _untimed(job, contender, "missing", contender.missing)
            elif reason := self._over():
                yield from _untimed(job, contender, "left_out", reason)
            else:
                try:
                    expected = expected or rule.expected(to_check, BACKWARD)
                    rule.verify(expected, _result(job, contender, to_check))
                    yield from self._timed(job, contender, sets, reached[job.case.name])
                except Exception as error:  # one contender must not end the benchmark of the others
                    name = "" if isinstance(error, ContractFailed) else f"{type(error).__name__}: "
                    yield from _untimed(job, contender, "failed", f"{name}{error}")
                    if not self.clock.works():
                        self.lost = contender.name

    def _timed(
        self, job: Job, contender: Contender, sets: Sequence[AttentionInputs], reached: Touched
    ) -> Iterator[Row]:
        names = ARGUMENTS[job.form]
        functions = [contender.bind(inputs) for inputs in sets]
        tensors = [[getattr(inputs, name) for name in names] for inputs in sets]
        leaves = [[tensor.detach().requires_grad_() for tensor in of_set] for of_set in tensors]
        if contender.forward:
            calls = [_forward(f, of_set) for f, of_set in zip(functions, tensors, strict=True)]
            yield self._row(
                job, contender, FORWARD, calls, lambda: functions[0](*leaves[0]), sets[0], reached
            )
        calls = [
            _backward(f(*of_set), of_set, inputs.grad_output)
            for f, of_set, inputs in zip(functions, leaves, sets, strict=True)
        ]
        yield self._row(job, contender, BACKWARD, calls, calls[0], sets[0], reached)

    def _row(
        self,
        job: Job,
        contender: Contender,
        pass_: str,
        calls: Sequence[Callable[[], object]],
        from_python: Callable[[], object],
        inputs: AttentionInputs,
        reached: Touched,
    ) -> Row:
        kernel = self.clock.kernel(calls, min(self.plan.budget_s, max(0.02, self._remaining_s() / 4)))
        call_us = self.clock.call(from_python, kernel.us) if kernel.us < WEIGHTY_US else None
        moved = traffic(inputs, job.form, pass_ == BACKWARD, reached)
        floor_us = microseconds(moved.device, self.rates[0])
        return {
            **_key(job, contender, pass_),
            "kernel_us": kernel.us,
            "call_us": call_us,
            "spread": round(kernel.spread, 3),
            "samples": kernel.samples,
            "timed_by": kernel.how,
            **({"note": kernel.note} if kernel.note else {}),
            "input_sets": len(calls),
            "device_bytes": moved.device,
            "gather_bytes": moved.gather,
            "floor_us": floor_us,
            "gather_us": microseconds(moved.gather, self.rates[1]),
            "over_floor": kernel.us / floor_us,
        }


def _result(job: Job, contender: Contender, inputs: AttentionInputs) -> dict[str, Tensor]:
    """Output and gradients of one call, by name."""
    names = ARGUMENTS[job.form]
    function = contender.bind(inputs)
    leaves = [getattr(inputs, name).detach().requires_grad_() for name in names]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, inputs.grad_output, retain_graph=contender.repeatable)
    if contender.repeatable:
        again = torch.autograd.grad(output, leaves, inputs.grad_output)
        for name, a, b in zip(names, gradients, again, strict=True):
            if not torch.equal(a, b):
                raise ContractFailed(f"grad_{name}: two runs differ")
    found = zip(names, gradients, strict=True)
    return {"output": output.detach(), **{f"grad_{name}": grad for name, grad in found}}


def _forward(function: Function, tensors: Sequence[Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return function(*tensors)

    return call


def _backward(output: Tensor, leaves: Sequence[Tensor], grad_output: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def _key(job: Job, contender: Contender, pass_: str) -> Row:
    return {
        "operator": ATTENTION,
        "case": job.case.name,
        "dtype": job.precision.name,
        "form": job.form,
        "pass": pass_,
        "contender": contender.name,
    }


def _untimed(job: Job, contender: Contender, why: str, reason: str) -> Iterator[Row]:
    for pass_ in (FORWARD, BACKWARD) if contender.forward else (BACKWARD,):
        yield {**_key(job, contender, pass_), why: reason.splitlines()[0][:300] if reason else why}
