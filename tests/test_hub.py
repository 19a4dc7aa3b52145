"""torch.hub finds the entry points."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detr_fast import DETR, Detector
from tests.paths import ROOT


def test_entry_points() -> None:
    model = torch.hub.load(str(ROOT), "model", "detr-tiny", num_classes=5, source="local")
    assert isinstance(model, DETR)
    assert model.config.num_classes == 5


def test_a_checkpoint_becomes_a_detector(tmp_path: Path) -> None:
    model = torch.hub.load(str(ROOT), "model", "detr-tiny", num_classes=5, source="local")
    about = Detector(model, {1: (1, "cat")}).description()
    torch.save({"model": model.state_dict(), "detector": about}, tmp_path / "a.pt")
    detector = torch.hub.load(str(ROOT), "detector", tmp_path / "a.pt", source="local")
    assert detector.categories == {1: (1, "cat")}
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        torch.hub.load(str(ROOT), "detector", tmp_path / "missing.pt", source="local")
