"""Operators, criteria and whole models on a GPU: kernel and call times beside floors and peers.

>>> from benchmarks.gpu import GpuPlan, run_gpu_benchmarks
>>> report = run_gpu_benchmarks(GpuPlan(deadline_s=60))
"""

from benchmarks.gpu.report import markdown, quick_gpu_plan, run_gpu_benchmarks
from benchmarks.gpu.suite import GpuPlan

__all__ = ["GpuPlan", "markdown", "quick_gpu_plan", "run_gpu_benchmarks"]
