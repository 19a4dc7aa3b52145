"""Operator speed beside its peers: cases, contract checks, interleaved timing, reports.

>>> from detr_fast.benchmarking import quick_plan, run_benchmarks
>>> report = run_benchmarks(quick_plan())
"""

from detr_fast.benchmarking.report import quick_plan, run_benchmarks
from detr_fast.benchmarking.suite import Plan

__all__ = ["Plan", "quick_plan", "run_benchmarks"]
