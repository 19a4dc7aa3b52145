"""Peak memory of a step, measured in processes of their own."""

from __future__ import annotations

import pytest

from benchmarks import memory
from benchmarks.cases import FORWARD_BACKWARD, MaskCase


@pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))
def test_mask_criterion_needs_at_most_half() -> None:
    """Many target masks at full resolution: the peer's float copies of them show."""
    case = MaskCase("small", (40,), queries=40, layers=1, classes=5)
    (row,) = memory.run(case, (FORWARD_BACKWARD,))
    assert 0 < row["ours_mib"] <= row["peer_mib"] / 2
    assert row["ratio"] == pytest.approx(row["peer_mib"] / row["ours_mib"])
