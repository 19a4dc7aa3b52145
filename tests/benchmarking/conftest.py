"""What the benchmark's tests share: the suites at sizes that take milliseconds."""

from __future__ import annotations

from benchmarks.suite import all_suites

FULL = {suite.operator: suite for suite in all_suites()}
TINY = {operator: suite.at_tiny_sizes() for operator, suite in FULL.items()}
