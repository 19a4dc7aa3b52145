"""Runs the cases beside attention on a GPU: contract first, then the clock, until their time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.contract import ContractFailed
from benchmarks.gpu.clock import CudaClock, WallClock
from benchmarks.gpu.floors import microseconds
from benchmarks.gpu.matching_cases import MatchingJob
from benchmarks.gpu.matching_contenders import MatchingContender, matching_contenders, rule
from benchmarks.gpu.work import Work, least_work

Row = dict[str, Any]
SEED = 0


@dataclass(frozen=True)
class Rates:
    """Of this run: bytes a second of a large copy; operations a second of a large product, by precision."""

    bytes_per_s: float
    flops_per_s: Mapping[str, float]

    def floor_us(self, work: Work) -> float:
        """The longer of moving the bytes and computing the products."""
        computed = microseconds(work.flops, self.flops_per_s[work.unit])
        return max(microseconds(work.bytes, self.bytes_per_s), computed)


def matching_rows(
    jobs: Sequence[MatchingJob],
    device: torch.device,
    clock: CudaClock | WallClock,
    rates: Rates,
    budget_s: float,
    deadline_s: float,
) -> Iterator[Row]:
    """One row for each contender of each job; after `deadline_s` seconds no further contender begins.

    Rows have operator, case, dtype, form, pass and contender. Timed ones add kernel_us (the device's work),
    wall_us (a call until the device has done its work), floor_us and how they were timed; others say why
    not: `missing`, `failed` or `left_out`.
    """
    ends = time.perf_counter() + deadline_s
    for job in jobs:
        # The stream stays current between rows only here: a consumer of the rows has its own.
        with clock.context():
            rows = list(_job(job, device, clock, rates, budget_s, ends))
        yield from rows


def _job(
    job: MatchingJob,
    device: torch.device,
    clock: CudaClock | WallClock,
    rates: Rates,
    budget_s: float,
    ends: float,
) -> Iterator[Row]:
    contenders = matching_contenders(job, device)
    inputs = to_check = expected = work = None
    for contender in contenders:
        key = _key(job, contender)
        if contender.missing:
            yield {**key, "missing": contender.missing}
        elif time.perf_counter() >= ends:
            yield {**key, "left_out": "time was up"}
        else:
            try:
                if work is None:
                    inputs, to_check, reference_inputs = job.inputs(device, SEED)
                    expected = rule(job).expected(reference_inputs, job.pass_)
                    work = least_work(inputs, job.pass_)
                result = contender.prepare(to_check)()
                rule(job).verify(expected, contender.canonical(result, to_check))
                del result
                call = contender.prepare(inputs)
                call()
                wall = clock.step(call, budget_s)
                kernel = wall if contender.waits else clock.kernel([call], budget_s)
            except Exception as error:  # one contender must not end the benchmark of the others
                name = "" if isinstance(error, ContractFailed) else f"{type(error).__name__}: "
                yield {**key, "failed": f"{name}{error}".splitlines()[0][:300]}
                continue
            floor_us = rates.floor_us(work)
            yield {
                **key,
                "kernel_us": kernel.us,
                "wall_us": wall.us,
                "call_us": None,
                "spread": round(kernel.spread, 3),
                "samples": kernel.samples,
                "timed_by": kernel.how,
                **({"note": kernel.note} if kernel.note else {}),
                "input_sets": 1,
                "device_bytes": work.bytes,
                **({"flops": work.flops} if work.flops else {}),
                "floor_us": floor_us,
                "over_floor": kernel.us / floor_us,
            }


def _key(job: MatchingJob, contender: MatchingContender) -> Row:
    return {
        "operator": job.case.operator,
        "case": job.name,
        "dtype": job.dtype,
        "form": "",
        "pass": job.pass_,
        "contender": contender.name,
    }
