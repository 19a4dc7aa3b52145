"""Fifty steps of training give the same losses with and without `accelerate`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import detr_fast
from tests.integrations import tiny


def curve(model: nn.Module, batches: list[dict[str, Any]]) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for step in range(50):
        torch.manual_seed(step)  # dropout
        optimizer.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_loss_curves_agree() -> None:
    name = "deformable_detr"
    model = tiny.build(name, **tiny.LOSSES[name]).train()
    batches = [tiny.inputs(name) | {"labels": tiny.targets(5)} for _ in range(5)]
    expected = curve(copy.deepcopy(model), batches)
    report = detr_fast.accelerate(model)
    assert report.replaced
    got = curve(model, batches)
    assert expected[-5:].mean() < expected[:5].mean()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
