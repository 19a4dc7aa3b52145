"""Runs the matching cases on a GPU: contract first, then the clock, until their share of the time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from detr_fast.benchmarking.contract import ContractFailed
from detr_fast.benchmarking.gpu.clock import CudaClock, WallClock
from detr_fast.benchmarking.gpu.floors import microseconds
from detr_fast.benchmarking.gpu.matching_cases import MatchingJob, least_bytes, on_device
from detr_fast.benchmarking.gpu.matching_contenders import MatchingContender, matching_contenders, rule

Row = dict[str, Any]
SEED = 0


def matching_rows(
    jobs: Sequence[MatchingJob],
    device: torch.device,
    clock: CudaClock | WallClock,
    bytes_per_s: float,
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
            rows = list(_job(job, device, clock, bytes_per_s, budget_s, ends))
        yield from rows


def _job(
    job: MatchingJob,
    device: torch.device,
    clock: CudaClock | WallClock,
    bytes_per_s: float,
    budget_s: float,
    ends: float,
) -> Iterator[Row]:
    contenders = matching_contenders(job, device)
    inputs = moved = expected = None
    for contender in contenders:
        key = _key(job, contender)
        if contender.missing:
            yield {**key, "missing": contender.missing}
        elif time.perf_counter() >= ends:
            yield {**key, "left_out": "time was up"}
        else:
            try:
                if inputs is None:
                    inputs = job.case.inputs(torch.Generator().manual_seed(SEED))
                    moved = on_device(inputs, device)
                    expected = rule(job).expected(inputs, job.pass_)
                call = contender.prepare(moved)
                rule(job).verify(expected, contender.canonical(call(), inputs))
                wall = clock.step(call, budget_s)
                kernel = wall if contender.waits else clock.kernel([call], budget_s)
            except Exception as error:  # one contender must not end the benchmark of the others
                name = "" if isinstance(error, ContractFailed) else f"{type(error).__name__}: "
                yield {**key, "failed": f"{name}{error}".splitlines()[0][:300]}
                continue
            moves = least_bytes(inputs, job.pass_)
            floor_us = microseconds(moves, bytes_per_s)
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
                "device_bytes": moves,
                "floor_us": floor_us,
                "over_floor": kernel.us / floor_us,
            }


def _key(job: MatchingJob, contender: MatchingContender) -> Row:
    return {
        "operator": job.case.operator,
        "case": job.name,
        "dtype": "fp32",
        "form": "",
        "pass": job.pass_,
        "contender": contender.name,
    }
