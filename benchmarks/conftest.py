"""Options of `pytest benchmarks/`; its JSON lies under benchmarks/results/, with the machine described."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runner import SEED
from detr_fast.machine import describe_machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", default="1,2", help="thread counts of torch, ours and peers, e.g. 1,2")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_save", None) is None:
        config.option.benchmark_save = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    config.option.benchmark_storage = f"file://{Path(__file__).parent / 'results'}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["detr_fast"] = {**describe_machine(), "seed": SEED}
