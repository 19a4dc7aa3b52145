"""Entry points of `torch.hub.load(repository, name, ...)`; operators are compiled where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

dependencies = ["torch", "numpy"]


def model(name: str = "detr-r50", **fields: Any) -> nn.Module:
    """A network with random weights.

    Args:
        name: a family or one of its variants, as `detr-fast train --model` takes it.
        fields: of its configuration, such as `num_classes=10`.
    """
    from detr_fast.families import FAMILIES, family_of, model_config

    return FAMILIES[family_of(name)].model(model_config(name, **fields))


def detector(checkpoint: str | Path, **options: Any) -> Any:
    """A trained model with its class names, ready to predict: `detr_fast.engine.load_detector`."""
    from detr_fast.engine import load_detector

    return load_detector(checkpoint, **options)
