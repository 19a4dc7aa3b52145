"""The driver itself: what it counts, and that it survives cases that do not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.fuzz import driver
from tests.fuzz.driver import Finding, Target, fuzz


def case(rng: random.Random, folder: Path) -> None:
    if rng.random() < 0.5:
        raise ValueError("refused")
    (folder / "kept").touch()


def crash(rng: random.Random, folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(rng: random.Random, folder: Path) -> None:
    time.sleep(600)


def hoard(rng: random.Random, folder: Path) -> None:
    bytearray(16 << 30)


def wrong(rng: random.Random, folder: Path) -> None:
    raise KeyError("a defect")


def test_outcomes_are_counted_and_repeatable() -> None:
    first, again = (fuzz(Target("example", case, (ValueError,)), 60, 3, most=40) for _ in range(2))
    assert first == again
    assert sum(first.values()) == 40
    assert set(first) == {"accepted", "ValueError"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [(crash, "SIGKILL"), (hang, "hangs"), (hoard, "MemoryError"), (wrong, "KeyError: 'a defect'")],
)
def test_findings_say_how_to_repeat_them(bad: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "HANG_SECONDS", 1.0)
    with pytest.raises(Finding, match=message) as caught:
        fuzz(Target("example", bad, (ValueError,)), 60, 3, first=7, most=1)  # type: ignore[arg-type]
    assert "--seed 3 --case 7" in str(caught.value)
