"""Models with their frozen norms folded compute what they did before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import detr_fast
from detr_fast.integrations.inference import FoldedConvolution, InPlaceActivation
from tests.integrations.test_attention import assert_close, case, run

FOLDED = ("deformable_detr", "detr", "rt_detr", "d_fine", "deimv2", "pp_doclayout_v3")


def with_statistics(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, given = case(name)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model, given


@pytest.mark.parametrize("name", FOLDED)
def test_outputs_state_and_restoring(name: str) -> None:
    model, given = with_statistics(name)
    state = {key: x.clone() for key, x in model.state_dict().items()}
    with torch.no_grad():
        expected = run(name, model, given)
        report = detr_fast.accelerate(model, inference=True)
        for kind in (FoldedConvolution, InPlaceActivation):
            assert sum(what == kind.what for _, what in report.replaced) >= 4, str(report)
        got = run(name, model, given)
        assert_close(got, expected, 3e-5)
        assert_close(run(name, copy.deepcopy(model), given), got, 0)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(x, state[key]) for key, x in model.state_dict().items())
        detr_fast.restore(model)
        assert all(torch.equal(x, expected[key]) for key, x in run(name, model, given).items())
    assert not any("norm_behind" in module.__dict__ for module in model.modules())


def test_norms_that_train_go_on() -> None:
    model, given = with_statistics("rt_detr")
    model.train()
    before = copy.deepcopy(model)
    detr_fast.accelerate(model, inference=True)
    assert_close(run("rt_detr", model, given), run("rt_detr", before, given), 1e-3)
    for (key, x), y in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=key)


def test_hooks_and_second_calls() -> None:
    model, _ = with_statistics("deformable_detr")
    hooked = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    hooked.register_forward_hook(lambda *_: None)
    report = detr_fast.accelerate(model, inference=True)
    left = [path for path, reason in report.skipped if "hooks" in reason]
    assert left == [f"model.backbone.model.embedder.embedder.{x}" for x in ("convolution", "activation")]
    again = detr_fast.accelerate(model, inference=True)
    assert not again.replaced


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.activation = kind, nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "its input":
            return self.linear(self.activation(x))
        y = self.linear(x)
        return self.activation(y) + (y if self.kind == "kept" else 0)


@pytest.mark.parametrize("kind", ["plain", "its input", "kept"])
def test_a_relu_overwrites_what_nobody_else_reads_alone(kind: str) -> None:
    block, x = Block(kind), torch.randn(3, 6)
    before, expected = x.clone(), block(x)
    report = detr_fast.accelerate(block, inference=True)
    if kind == "plain":
        assert report.replaced == [("activation", InPlaceActivation.what)]
    else:
        assert report.skipped == [("activation", "on a random input the changed block differs")]
    assert torch.equal(block(x), expected)
    assert torch.equal(x, before)


def test_a_relu_of_two_blocks_stays() -> None:
    blocks = nn.ModuleList(Block("plain") for _ in range(2))
    blocks[1].activation = blocks[0].activation
    report = detr_fast.accelerate(blocks, strict=False, inference=True)
    assert (report.replaced, report.skipped) == ([], [])


def test_training_under_in_place_activations() -> None:
    model, given = with_statistics("deformable_detr")
    before = copy.deepcopy(model)
    assert detr_fast.accelerate(model, inference=True).replaced
    for some in (model, before):
        run("deformable_detr", some, given)["logits[0]"].square().sum().backward()
    largest = max(float(p.grad.abs().max()) for p in before.parameters() if p.grad is not None)
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        if q.grad is not None:
            assert p.grad is not None
            assert (p.grad - q.grad).abs().max() <= 1e-4 * largest, name
