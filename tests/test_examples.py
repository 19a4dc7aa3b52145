"""The examples run."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.export.test_export import detector_of
from tests.paths import ROOT


def test_minimal_detr(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "minimal_detr.py"))["main"](steps=2)
    losses = re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)
    assert len(losses) == 2


def test_ray_answers_as_the_detector(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("ray.data", reason="needs ray[data], 200 MB that nothing else uses")
    detector = detector_of("detr", rng)
    about = {"model": detector.model.state_dict(), "detector": detector.description()}
    torch.save(about, tmp_path / "a.pt")
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.effect_noise((40 + i, 30), 50).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "bad.png").write_text("no picture")
    script = [sys.executable, str(ROOT / "examples" / "predict_on_ray.py")]
    places = [str(tmp_path / name) for name in ("a.pt", "photos", "out")]
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    subprocess.run([*script, *places, "--workers", "2"], check=True, capture_output=True, env=environment)
    lines = [line for file in (tmp_path / "out").iterdir() for line in file.read_text().splitlines()]
    rows = {Path(row["file"]).name: row for row in map(json.loads, lines)}
    assert len(lines) == len(rows) == 5
    assert "not an image" in rows.pop("bad.png")["error"]
    for name, row in rows.items():
        expected = detector(tmp_path / "photos" / name).records
        assert [one["label"] for one in json.loads(row["records"])] == [one["label"] for one in expected]
