"""Fixtures of operators' tests that criteria take too."""

from tests.ops.conftest import isa

__all__ = ["isa"]
