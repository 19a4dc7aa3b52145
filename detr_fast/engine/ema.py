"""The exponential moving average of a model's weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that follows it: average <- d * average + (1 - d) * weights after each update.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that a short run is not held back by its random
    start. Buffers are copied, not averaged.
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay: expected a number between 0 and 1; got {decay}")

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        # a tensor throughout: reading the count would wait for a GPU
        step = 1 - torch.clamp(torch.as_tensor((1 + updates) / (10 + updates)), max=decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, step.to(average.dtype))

    return AveragedModel(model, multi_avg_fn=update)
