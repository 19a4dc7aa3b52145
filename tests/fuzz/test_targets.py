"""Every fuzz target for a few seconds; by hand for as long as one likes."""

from __future__ import annotations

import pytest

from tests.conftest import SEED
from tests.fuzz import annotations, checkpoints, images
from tests.fuzz.driver import Target, fuzz


@pytest.mark.parametrize(
    "target", [annotations.TARGET, checkpoints.TARGET, images.TARGET], ids=lambda target: target.name
)
def test_a_few_seconds(target: Target) -> None:
    outcome = fuzz(target, 3, SEED)
    assert outcome["accepted"] > 0
    assert len(outcome) > 1, "bad input is among the cases"
