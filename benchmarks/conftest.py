"""One pytest-benchmark test for each contender of each case, pass and thread count.

A contender whose result breaks the contract fails and is not timed. Results are saved as JSON under
benchmarks/results/, with the machine described.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.contract import ContractFailed
from benchmarks.runner import SEED, Plan, Subject
from benchmarks.suite import Case, Contender, Suite, all_suites
from detr_fast.machine import describe_machine, torch_threads


class Entry(NamedTuple):
    """One contender of one case."""

    suite: Suite
    case: Case
    pass_: str
    threads: int
    contender: Contender

    def __str__(self) -> str:
        parts = (self.suite.operator, self.case.name, self.pass_, str(self.threads), self.contender.name)
        return "-".join(parts).replace(" ", "_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", default="1,2", help="thread counts of torch, ours and peers, e.g. 1,2")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_save", None) is None:
        config.option.benchmark_save = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    config.option.benchmark_storage = f"file://{Path(__file__).parent / 'results'}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["detr_fast"] = {**describe_machine(), "seed": SEED}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" not in metafunc.fixturenames:
        return
    threads = [int(count) for count in metafunc.config.getoption("--threads").split(",")]
    metafunc.parametrize("entry", found := entries(threads), ids=map(str, found))


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


_latest: list[Subject] = []


def _subject(suite: Suite, case: Case) -> Subject:
    """The inputs and references of a case; only the latest are kept in memory."""
    if not _latest or _latest[0].case is not case:
        _latest[:] = [Subject(suite, case)]
    return _latest[0]


@pytest.fixture
def time_entry(benchmark: Any) -> Callable[[Entry], None]:
    """Checks an entry's result against the reference, then times it."""

    def run(entry: Entry) -> None:
        suite, case, pass_, threads, contender = entry
        subject = _subject(suite, case)
        benchmark.group = f"{suite.operator} {case.name}, {pass_}, threads: {threads}"
        row = {"operator": suite.operator, "case": case.name, "pass": pass_, "threads": threads}
        benchmark.extra_info.update(row, contender=contender.name)
        with torch_threads(threads):
            try:
                seconds = subject.check(contender, pass_)
            except ContractFailed as error:
                pytest.fail(f"not timed: {error}", pytrace=False)
            call = contender.prepare(subject.inputs, pass_)
            if seconds > 0.05:
                benchmark.pedantic(call, rounds=3 if seconds > 0.5 else 10)
            else:
                benchmark(call)

    return run
