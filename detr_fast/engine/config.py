"""How to train, as one frozen value; the command line takes its defaults from here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from detr_fast.families import FAMILIES
from detr_fast.families.family import SMALL_TRAINING


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the official DETR's.

    Args:
        epochs: passes over the data.
        batch_size: images a process and backward pass.
        accumulate: backward passes an optimizer step. The gradients are those of the joined batch.
        lr, lr_backbone: AdamW's learning rate, and the one of parameters under `backbone.`.
        weight_decay: AdamW's.
        lr_drop: epochs after which both learning rates are divided by 10.
        warmup_steps: optimizer steps over which the learning rates rise linearly from 0.
        clip_max_norm: bound of the gradient's 2-norm; 0 leaves it alone.
        amp: run the model's forward pass under bfloat16 autocast. The losses stay in float32.
        ema: decay of the weights' moving average, which is then what gets evaluated; 0 keeps none.
        seed: of the data's order, its augmentation and dropout.
        num_workers: processes that read images; 0 reads in this one.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: optimizer steps between checkpoints inside an epoch; 0 writes one an epoch.
        checkpoint_minutes: time between checkpoints inside an epoch; 0: none by time. Several processes write
            them at log records.
        log_every: optimizer steps between log records. Losses are checked for NaN as often, and before
            every checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    epochs: int = 300
    batch_size: int = 2
    accumulate: int = 1
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    weight_decay: float = 1e-4
    lr_drop: int = 200
    warmup_steps: int = 0
    clip_max_norm: float = 0.1
    amp: bool = False
    ema: float = 0.0
    seed: int = 42
    num_workers: int = 2
    eval_every: int = 1
    checkpoint_every: int = 0
    checkpoint_minutes: float = 0.0
    log_every: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "lr_drop", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1; got {getattr(self, name)}")
        for name in ("lr", "lr_backbone", "weight_decay", "warmup_steps", "clip_max_norm", "num_workers",
                     "checkpoint_every", "checkpoint_minutes"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0; got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay in 0..1, below 1; got {self.ema}")


# What may differ between an interrupted run and its continuation: how long and how fast it learns, and where.
FREE_ON_RESUME = {
    "epochs", "lr", "lr_backbone", "lr_drop", "warmup_steps", "num_workers", "eval_every", "checkpoint_every",
    "checkpoint_minutes", "log_every", "device",
}  # fmt: skip
# These share out the images of a step, whose number must stay.
SPLIT_OF_A_STEP = {"batch_size", "accumulate", "processes"}


def train_config(family: str, *, small: bool = False, **given: Any) -> TrainConfig:
    """The family's training settings, or those of a small model that starts from nothing.

    `given` ones override them, None leaves them alone.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    return TrainConfig(**{**FAMILIES[family].training, **(SMALL_TRAINING if small else {}), **chosen})
