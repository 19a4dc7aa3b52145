"""Matching costs beside facebookresearch/detr's block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("box_match_cost",)


def bench_box_match_cost(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
