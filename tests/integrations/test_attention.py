"""Accelerated models of transformers compute what they did before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detr_fast
from tests.integrations import tiny

# what lies behind a hard threshold jumps where an input moves by a rounding error, patched or not
BEFORE_THRESHOLDS = {
    "mask2former": ("pixel_decoder_last_hidden_state",),
    "oneformer": ("pixel_decoder_hidden_states",),
}
BEHIND_THRESHOLDS = ("order_logits",)


def compared(name: str, outputs: Any) -> dict[str, Tensor]:
    """The float tensors of an output, tuples of them stacked out."""
    found: dict[str, Tensor] = {}
    for key, value in outputs.items():
        if key in BEFORE_THRESHOLDS.get(name, (key,)) and key not in BEHIND_THRESHOLDS:
            leaves = torch.utils._pytree.tree_leaves(value)
            found |= {f"{key}[{i}]": x for i, x in enumerate(leaves) if isinstance(x, Tensor)}
    assert found
    return {key: x.nan_to_num(0, 0, 0) for key, x in found.items() if x.is_floating_point()}


def run(name: str, model: nn.Module, given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    if name in BEFORE_THRESHOLDS:
        options["output_hidden_states"] = True
    torch.manual_seed(7)  # dropout
    return compared(name, model(**given, **options))


def run_with_gradients(
    name: str, model: nn.Module, given: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad()
    outputs = run(name, model, given)
    generator = torch.Generator().manual_seed(3)
    terms = [
        (x / x.detach().abs().max().clamp(min=1e-6) * torch.randn(x.shape, generator=generator)).sum()
        for x in outputs.values()
        if x.requires_grad
    ]
    torch.stack(terms).sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: x.detach() for key, x in outputs.items()}, gradients


def case(name: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and an input whose proposals, where the encoder's are ranked, are not nearly tied."""
    for _ in range(20):
        model, given = tiny.build(name, **options).eval(), tiny.inputs(name)
        if "grounding" not in name:
            return model, given
        with torch.no_grad():
            scores = model(**given).enc_outputs_class.max(-1).values.topk(model.config.num_queries + 1).values
        if scores.diff().abs().min() > 1e-5 * scores.abs().max():
            return model, given
    raise AssertionError("proposals are tied in each of 20 random models")


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for key, x in expected.items():
        assert (got[key] - x).abs().max() <= tolerance * x.abs().max() + 1e-7, key


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_outputs_and_gradients_stay_the_same(name: str, mode: str) -> None:
    check_outputs_and_gradients(name, mode)


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rt_detr_v2", {"decoder_offset_scale": 0.3}),
        ("d_fine", {"decoder_n_points": [3, 6, 3]}),
        ("deimv2", {"decoder_n_points": [3, 6, 3]}),
    ],
)
def test_points_of_each_level_and_discrete_sampling(name: str, options: dict[str, Any], method: str) -> None:
    check_outputs_and_gradients(name, "eval", decoder_method=method, **options)


def check_outputs_and_gradients(name: str, mode: str, **options: Any) -> None:
    model, given = case(name, **options)
    model.train(mode == "train")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # over these few pixels batch statistics make gradients noise
    before = copy.deepcopy(model)
    expected, expected_gradients = run_with_gradients(name, before, given)
    state = {key: x.clone() for key, x in model.state_dict().items()}

    report = detr_fast.accelerate(model)
    assert report.replaced
    assert not report.skipped
    assert model.state_dict().keys() == state.keys()

    outputs, gradients = run_with_gradients(name, model, given)
    assert_close(outputs, expected)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(x.abs().max()) for x in expected_gradients.values())
    inside = tuple(path for path, _ in report.replaced)
    for key, x in expected_gradients.items():
        error = float((gradients[key] - x).abs().max())
        assert error <= 1e-5 * largest, key
        if key.startswith(inside):
            assert error <= 1e-4 * float(x.abs().max()) + 1e-6 * largest, key


@pytest.mark.parametrize("name", tiny.MODELS)
def test_restored_models_give_the_same_bits(name: str) -> None:
    model, given = tiny.build(name).eval(), tiny.inputs(name)
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        expected = run(name, model, given)
        detr_fast.accelerate(model)
        assert [type(module) for module in model.modules()] != classes
        detr_fast.restore(model)
        got = run(name, model, given)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(got[key], x) for key, x in expected.items())


@pytest.mark.parametrize("name", tiny.MODELS)
def test_attentions_are_returned_where_asked_for(name: str) -> None:
    model, given = case(name)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = run(name, model, given, output_attentions=True)
        detr_fast.accelerate(model)
        got = run(name, model, given, output_attentions=True)
    assert_close(got, expected)
    if name not in BEFORE_THRESHOLDS:
        assert any("attentions" in key for key in expected)
