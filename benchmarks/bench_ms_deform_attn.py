"""Multi-scale deformable attention beside the `grid_sample` path and torch-ms-deform-attn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("ms_deform_attn",)


def bench_ms_deform_attn(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
