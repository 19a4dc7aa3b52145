"""Point samples beside `grid_sample`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("point_sample",)


def bench_point_sample(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
