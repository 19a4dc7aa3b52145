"""Every contender of every case, as `pytest benchmarks` times it: one test each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bench(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
