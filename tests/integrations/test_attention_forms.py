"""Attention modules of each interface compute what they did before, in training too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detr_fast
from detr_fast.integrations import attention, attention_forms, ms_deform_attn
from tests.integrations import standins
from tests.integrations.standins import HEADS, POSITIONS, SHAPES, WIDTH

TENSOR = torch.tensor(SHAPES)
STARTS = TENSOR.prod(1).cumsum(0) - TENSOR.prod(1)
QUERIES = 5
Call = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def official(module, query, source, reference, mask):
    return module(query, reference, source, TENSOR, STARTS, mask)


def mmcv(module, query, source, reference, mask):
    positions = torch.linspace(-1, 1, WIDTH).expand_as(query)
    if not module.batch_first:
        query, source, positions = (x.transpose(0, 1) for x in (query, source, positions))
    given = {"reference_points": reference, "spatial_shapes": TENSOR, "level_start_index": STARTS}
    return module(query, value=source, query_pos=positions, key_padding_mask=mask, **given)


def rt_detr(module, query, source, reference, mask):
    return module(query, reference, source, SHAPES, value_mask=mask)


def d_fine(module, query, source, reference, mask):
    maps = source.unflatten(2, (HEADS, -1)).permute(0, 2, 3, 1).split([h * w for h, w in SHAPES], -1)
    return module(query, reference[:, :, :1], maps, SHAPES)


CASES: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "Deformable-DETR": (standins.MSDeformAttn, official),
    "rfdetr": (standins.RFDETRAttention, official),
    "mmcv": (standins.MultiScaleDeformableAttention, mmcv),
    "mmcv, batch first": (lambda: standins.MultiScaleDeformableAttention(batch_first=True), mmcv),
    "GroundingDINO": (standins.GroundingDINOAttention, mmcv),
    "RT-DETR": (standins.MSDeformableAttention, rt_detr),
    "D-FINE": (standins.DFINEAttention, d_fine),
}


def computed(
    module: nn.Module, call: Call, given: tuple[Any, ...], seed: int = 3
) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(seed)  # dropout
    output = call(module, *given)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    return output, torch.autograd.grad((output * weights).sum(), (*given[:2], *module.parameters()))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_stay_the_same(
    name: str, coordinates: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, call = CASES[name]
    if name == "D-FINE":
        coordinates = 4
    module = make()
    own = type(module)
    given = (
        torch.randn(2, QUERIES, WIDTH, requires_grad=True),
        torch.randn(2, POSITIONS, WIDTH, requires_grad=True),
        torch.rand(2, QUERIES, len(SHAPES), coordinates),
        torch.rand(2, POSITIONS) < 0.4 if masked else None,
    )
    report = detr_fast.accelerate(nn.Sequential(module))
    assert report.replaced == [("0", attention_forms.Form.what)]
    got = computed(module, call, given)
    detr_fast.restore(module)
    assert type(module) is own
    monkeypatch.setattr(standins, "MSDeformAttnFunction", ms_deform_attn.MSDeformAttnFunction)
    expected = computed(module, call, given)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_module_in_export_mode_goes_on_by_itself() -> None:
    module = standins.RFDETRAttention()
    detr_fast.accelerate(module)
    module._export = True
    query = torch.randn(2, QUERIES, WIDTH)
    reference, source = torch.rand(2, QUERIES, len(SHAPES), 2), torch.randn(2, POSITIONS, WIDTH)
    assert official(module, query, source, reference, None) is query
    detr_fast.restore(module)
    assert detr_fast.accelerate(module).skipped == [("", "it is in export mode")]


@pytest.mark.parametrize("name", CASES)
def test_a_forward_of_another_meaning_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = standins.Projections.sampling

    def shifted(*args: Any) -> tuple[Tensor, Tensor]:
        locations, weights = plain(*args)
        return locations + 0.05, weights

    monkeypatch.setattr(standins.Projections, "sampling", shifted)
    report = detr_fast.accelerate(CASES[name][0]())
    assert not report.replaced
    assert [reason[:27] for _, reason in report.skipped] == ["on a random input its resul"]


def test_an_unknown_signature_says_what_was_expected() -> None:
    class MSDeformAttn(standins.Projections):
        def forward(self, query, memory):
            raise NotImplementedError

    reason = attention.choose(MSDeformAttn(), weights_for_hooks=False)
    assert isinstance(reason, str)
    assert reason.startswith("unknown signature: expected forward with (input_flatten, ")
    assert reason.endswith("got (query, memory)")


def test_a_module_that_cannot_be_tried_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("out of order")

    monkeypatch.setattr(standins.Projections, "projected", broken)
    reason = "it could not be tried: RuntimeError: out of order"
    assert detr_fast.accelerate(standins.MSDeformAttn()).skipped == [("", reason)]
