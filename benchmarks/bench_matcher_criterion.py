"""The whole matcher and the whole criteria beside facebookresearch/detr's and Mask2Former's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATORS = ("matcher", "criterion", "mask_criterion")


def bench_matcher_criterion(entry: Any, time_entry: Callable[[Any], None]) -> None:
    time_entry(entry)
