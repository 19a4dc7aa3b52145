"""What the benchmark's tests share: the suites at sizes that take milliseconds."""

from __future__ import annotations

from benchmarks.suite import all_suites

# a name of two words is another suite's under other conditions
FULL = {suite.operator: suite for suite in all_suites() if " " not in suite.operator}
TINY = {operator: suite.at_tiny_sizes() for operator, suite in FULL.items()}
