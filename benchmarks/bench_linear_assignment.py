"""Batched assignment beside scipy in both orientations, py-lap-solver, lapx and lap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("linear_assignment",)


def bench_linear_assignment(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
