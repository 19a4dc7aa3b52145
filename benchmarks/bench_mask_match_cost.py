"""Matching costs of masks beside the loops of the official matchers, and batched PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("mask_match_cost",)


def bench_mask_match_cost(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
