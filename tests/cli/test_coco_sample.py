"""Every family with every task that it does, on real images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from detr_fast.engine import FAMILIES, TASKS
from detr_fast.engine.logs import read_log
from tests.cli.running import ok
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

COMBINATIONS = [(family, task) for family, about in FAMILIES.items() for task in about.tasks]


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
@pytest.mark.parametrize(("family", "task"), COMBINATIONS)
def test_a_few_steps_an_evaluation_and_a_picture(family: str, task: str, tmp_path: Path) -> None:
    assert COCO_SAMPLE is not None
    run = tmp_path / "run"
    ok("train", "--data", COCO_SAMPLE, "--output", run, "--model", f"{family}-tiny", "--task", task,
       "--epochs", 1, "--batch-size", 4, "--image-size", 96, "--log-every", 1, "--num-workers", 0,
       "--device", "cpu")  # fmt: skip
    losses = [row["loss"] for row in read_log(run, "train")]
    assert len(losses) >= 3
    assert all(map(math.isfinite, losses))
    best = TASKS[task].best_metric
    assert 0 <= read_log(run, "eval")[-1][best] <= 1
    image = COCO_SAMPLE / "val2017" / "000000001000.jpg"
    output = tmp_path / "predictions"
    ok("predict", image, "--checkpoint", run / "last.pt", "--output", output, "--device", "cpu")
    (record,) = json.loads((output / "predictions.json").read_text())
    assert record["file"] == str(image)
    assert (output / "000000001000.png").exists()
