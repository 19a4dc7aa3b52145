"""One pytest-benchmark test for each contender of each case, pass and thread count: `pytest benchmarks`.

A contender whose result breaks the contract fails and is not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from benchmarks.contract import ContractFailed
from benchmarks.runner import Plan, Subject
from benchmarks.suite import Contender, Suite, all_suites
from detr_fast.machine import torch_threads


class Entry(NamedTuple):
    """One contender of one case."""

    suite: Suite
    case: Any
    pass_: str
    threads: int
    contender: Contender

    def __str__(self) -> str:
        parts = (self.suite.operator, self.case.name, self.pass_, str(self.threads), self.contender.name)
        return "-".join(parts).replace(" ", "_")


def entries(threads: Sequence[int]) -> list[Entry]:
    """All that can run here, in the order of the cases."""
    return [
        Entry(suite, case, pass_, count, contender)
        for suite, case in Plan().chosen(all_suites())
        for pass_ in case.passes
        for count in threads
        for contender in suite.contenders(case)
        if not contender.missing
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    threads = [int(count) for count in metafunc.config.getoption("--threads").split(",")]
    metafunc.parametrize("entry", found := entries(threads), ids=map(str, found))


@lru_cache(maxsize=1)  # only the latest inputs and references are kept in memory
def subject(suite: Suite, case: Any) -> Subject:
    return Subject(suite, case)


def bench(entry: Entry, benchmark: Any) -> None:
    suite, case, pass_, threads, contender = entry
    benchmark.group = f"{suite.operator} {case.name}, {pass_}, threads: {threads}"
    row = {"operator": suite.operator, "case": case.name, "pass": pass_, "threads": threads}
    benchmark.extra_info.update(row, contender=contender.name)
    with torch_threads(threads):
        try:
            seconds = subject(suite, case).check(contender, pass_)
        except ContractFailed as error:
            pytest.fail(f"not timed: {error}", pytrace=False)
        call = contender.prepare(subject(suite, case).inputs, pass_)
        if seconds > 0.05:
            benchmark.pedantic(call, rounds=3 if seconds > 0.5 else 10)
        else:
            benchmark(call)
