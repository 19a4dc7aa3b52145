"""Fixtures of the benchmark's tests."""

from tests.benchmarking.tiny import small_model

__all__ = ["small_model"]
