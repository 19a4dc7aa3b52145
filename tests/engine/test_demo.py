"""The demo in seconds: what it leaves behind, not what it learns."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from detr_fast.engine import demo, load_detector

ROW = {"operator": "o", "case": "c", "pass": "forward", "threads": 1, "peer": "p"}
ROWS = [
    {**ROW, "ratio": 3.0, "ours_ms": 1.0, "peer_ms": 3.0},
    {**ROW, "ratio": None, "left_out": "time was up"},
]


def write_rows(arguments: Sequence[str]) -> int:
    """In place of the benchmark: its report."""
    assert arguments[:2] == ["--quick", "--device"]
    return bool(Path(arguments[-1]).write_text(json.dumps({"rows": ROWS}))) - 1


def test_demo_leaves_a_whole_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 16)
    monkeypatch.setattr(demo, "VAL_IMAGES", 3)
    monkeypatch.setattr(demo, "PICTURES", 3)
    quick = {"epochs": 2, "batch_size": 8, "eval_every": 1, "log_every": 1}
    parts = [
        dataclasses.replace(part, training=dataclasses.replace(part.training, **quick)) for part in demo.PARTS
    ]
    monkeypatch.setattr(demo, "PARTS", parts)
    monkeypatch.setattr(demo, "run_benchmarks", write_rows)
    for _ in range(2):  # a second run replaces the first
        summary = demo.run_demo(tmp_path)
    assert summary == json.loads((tmp_path / "metrics.json").read_text())
    assert {"AP", "AP50_untrained", "PQ", "PQ_th_untrained", "seconds"} <= summary.keys()
    report = (tmp_path / "report.md").read_text()
    for image in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert min(Image.open(tmp_path / image).size) > 200
    assert "| o | c | forward | 1 | p | 1 | 3 | 3.0x |" in report
    assert "time was up" in report
    for part in parts:
        run = tmp_path / part.name
        assert len(list((run / "tensorboard").glob("events.*"))) == 1
        assert load_detector(run / "best.pt").task_name == part.task
    assert load_detector(tmp_path / "dino-detection" / "best.pt").categories[5] == (5, "star")
