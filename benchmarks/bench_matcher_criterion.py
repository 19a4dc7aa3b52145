"""The whole matcher and the whole criterion beside facebookresearch/detr's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("matcher", "criterion")


def bench_matcher_criterion(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
