"""Code of Deformable-DETR's kin finds our operator under the name of its CUDA extension."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from detr_fast.integrations import ms_deform_attn as integration
from detr_fast.ops import use_backend


@pytest.fixture
def installed() -> Iterator[None]:
    integration.install()
    yield
    integration.uninstall()
    assert integration.EXTENSION not in sys.modules


def official_function() -> Any:
    """As the documented interface of Deformable-DETR's ops has it."""
    import MultiScaleDeformableAttention as MSDA

    class MSDeformAttnFunction(Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
            ctx.im2col_step = im2col_step
            ctx.save_for_backward(value, shapes, starts, locations, weights)
            return MSDA.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad_output):
            gradients = MSDA.ms_deform_attn_backward(*ctx.saved_tensors, grad_output, ctx.im2col_step)
            grad_value, grad_locations, grad_weights = gradients
            return grad_value, None, None, grad_locations, grad_weights, None

    return MSDeformAttnFunction


def test_the_official_function_runs_on_it(installed: None) -> None:
    shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    inputs = [torch.randn(2, 26, 3, 8), torch.rand(2, 7, 3, 2, 4, 2), torch.rand(2, 7, 3, 2, 4)]
    grad = torch.randn(2, 7, 24)

    def run(apply: Any) -> list[torch.Tensor]:
        value, locations, weights = (x.clone().requires_grad_() for x in inputs)
        output = apply(value, shapes, starts, locations, weights, 64)
        return [output, *torch.autograd.grad(output, (value, locations, weights), grad)]

    got = run(official_function().apply)
    with use_backend("reference"):
        expected = run(integration.MSDeformAttnFunction.apply)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_an_extension_that_is_there_already_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, integration.EXTENSION, ModuleType(integration.EXTENSION))
    with pytest.raises(RuntimeError, match="has been imported from"):
        integration.install()
    integration.uninstall()
    assert integration.EXTENSION in sys.modules


def test_installing_twice_is_harmless(installed: None) -> None:
    integration.install()
