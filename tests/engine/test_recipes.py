"""The commands of docs/guides/dino.md train DINO by the official settings."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from detr_fast.cli import train as command_line
from detr_fast.engine import FAMILIES, model_config
from detr_fast.models import DINO
from tests.cli.running import run
from tests.paths import ROOT

COMMANDS = re.findall(r"^torchrun .*$", (ROOT / "docs/guides/dino.md").read_text(), re.MULTILINE)
DROPS = {12: 11, 24: 20}


def test_both_recipes_are_there() -> None:
    assert len(COMMANDS) == len(DROPS)


@pytest.mark.parametrize("command", COMMANDS)
def test_recipe(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def train(source: Any, output: Any, config: Any, start: Any, **options: Any) -> dict[str, float]:
        taken.extend((config, start, options))
        return {}

    monkeypatch.setattr(command_line, "train_on_coco", train)
    launcher, arguments = command.split(" -m detr_fast ")
    processes = int(launcher.split()[-1])
    result = run(*shlex.split(arguments))
    assert result.exit_code == 0, result.output
    config, start, options = taken
    assert DROPS[config.epochs] == config.lr_drop
    assert processes * config.batch_size * config.accumulate == 16
    assert (config.clip_max_norm, config.ema, config.amp, config.warmup_steps) == (0.1, 0.9997, True, 0)
    assert (start.family, start.image_size) == ("dino", 800)
    assert options["augmentation"] is None
    assert FAMILIES["dino"].augmentation == "detr"
    # the official "default" groups: names without "backbone", and with it
    model = DINO(model_config(start.choice.name))
    rates = {
        id(p): group["lr"]
        for group in FAMILIES["dino"].parameter_groups(model, config)
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (1e-5 if "backbone" in name else 1e-4), name
    assert config.weight_decay == 1e-4
    denoising = model.denoising
    assert (denoising.number, denoising.label_noise, denoising.box_noise) == (100, 0.5, 1.0)
