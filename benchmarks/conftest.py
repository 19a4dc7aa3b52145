"""One pytest-benchmark test for each contender of each case, pass and thread count.

A contender whose result breaks the contract fails and is not timed. Results are saved as JSON under
benchmarks/results/, with the machine described.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.cases import CASES, Case
from benchmarks.contract import Contract, ContractFailed
from benchmarks.peers import Contender, all_peers
from benchmarks.suite import SEED, Comparison
from detr_fast.machine import describe_machine, torch_threads


class Entry(NamedTuple):
    """One contender of one case."""

    case: Case
    pass_: str
    threads: int
    contender: Contender
    contract: Contract


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
    entries = [entry for count in threads for entry in _entries(metafunc.module.OPERATORS, count)]
    entries.sort(key=lambda entry: CASES.index(entry.case))
    metafunc.parametrize("entry", entries, ids=map(_name, entries))


def _entries(operators: tuple[str, ...], threads: int) -> Iterator[Entry]:
    for case in CASES:
        peers = [p for p in all_peers() if p.operator == case.operator and p.operator in operators]
        contenders = {
            contender.name: (contender, peer.contract)
            for peer in peers
            if not peer.missing
            for contender in (peer.ours, peer.theirs)
        }
        for pass_ in case.passes:
            for contender, contract in contenders.values():
                yield Entry(case, pass_, threads, contender, contract)


def _name(entry: Entry) -> str:
    return f"{entry.case.name}-{entry.pass_}-{entry.threads}-{entry.contender.name}".replace(" ", "_")


_latest: dict[tuple[str, str, str], Comparison] = {}


def _comparison(case: Case, pass_: str) -> Comparison:
    """The inputs and the reference of a case; only the latest is kept in memory."""
    key = (case.operator, case.name, pass_)
    if key not in _latest:
        _latest.clear()
        _latest[key] = Comparison(case, pass_, case.inputs(torch.Generator().manual_seed(SEED)))
    return _latest[key]


@pytest.fixture
def time_entry(benchmark: Any) -> Callable[[Entry], None]:
    """Checks an entry's result against the reference, then times it."""

    def run(entry: Entry) -> None:
        case, contender = entry.case, entry.contender
        comparison = _comparison(case, entry.pass_)
        benchmark.group = f"{case.operator} {case.name}, {entry.pass_}, threads: {entry.threads}"
        benchmark.extra_info.update(
            {
                "operator": case.operator,
                "case": case.name,
                "pass": entry.pass_,
                "threads": entry.threads,
                "contender": contender.name,
            }
        )
        with torch_threads(entry.threads):
            try:
                seconds = comparison.check(contender, entry.contract, entry.threads)
            except ContractFailed as error:
                pytest.fail(f"not timed: {error}", pytrace=False)
            call = contender.prepare(comparison.inputs, entry.pass_, entry.threads)
            if seconds > 0.05:
                benchmark.pedantic(call, rounds=3 if seconds > 0.5 else 10)
            else:
                benchmark(call)

    return run
