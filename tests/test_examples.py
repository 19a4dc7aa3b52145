"""The examples run."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.paths import ROOT


def test_minimal_detr(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "minimal_detr.py"))["main"](steps=2)
    losses = re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)
    assert len(losses) == 2
