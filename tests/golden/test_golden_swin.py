"""The Swin backbone against Mask2Former's: features and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.models.swin import Swin, SwinSizes
from tests.golden import case as golden
from tests.golden.data.seeded import seeded_array

# what the case suggests
OUTPUTS_RTOL, OUTPUTS_ATOL, GRADIENTS = 1e-4, 2e-5, 1e-4
SIZES = (
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "patch_size",
    "mlp_ratio",
    "qkv_bias",
    "patch_norm",
)


def swin(notes: Mapping[str, Any]) -> bool:
    return {"depths", "num_heads", "window_size"} <= notes.get("config", {}).keys()


@cache
def model_of(name: str) -> Swin:
    case = golden.load(name)
    sizes = {key: case.config[key] for key in SIZES if key in case.config}
    model = Swin(SwinSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})).eval()
    state = case.state_dict()
    # official state dicts hold what the model computes, too
    computed = tuple(sorted(case.notes["state_dict_entries_not_seeded"]))
    state |= dict.fromkeys(computed, case["relative_position_index"])
    assert load_state_dict(model, state) == LoadReport(ignored=computed)
    return model


@pytest.mark.parametrize(("name", "group"), golden.find(swin, ("out/",)))
@torch.no_grad()
def test_features(name: str, group: str) -> None:
    case = golden.load(name)
    features = model_of(name)(torch.stack(case.images()))
    levels = case.config["out_features"]
    assert [list(x.shape) for x in features] == list(levels.values())
    for level, x in zip(levels, features, strict=True):
        torch.testing.assert_close(x, case[group + level], rtol=OUTPUTS_RTOL, atol=OUTPUTS_ATOL)


@pytest.mark.parametrize(("name", "group"), golden.find(swin, ("gradnorm/",)))
def test_gradients(name: str, group: str) -> None:
    case, model = golden.load(name), model_of(name)
    model.zero_grad()
    features = model(torch.stack(case.images()))
    weights = [
        torch.from_numpy(seeded_array(f"cotangent.{level}", tuple(x.shape)))
        for level, x in zip(case.config["out_features"], features, strict=True)
    ]
    scalar = torch.stack([(x * w).sum() for x, w in zip(features, weights, strict=True)]).sum()
    scalar.backward()
    spread = sum(float(x.detach().norm() * w.norm()) for x, w in zip(features, weights, strict=True))
    torch.testing.assert_close(scalar.detach(), case["scalar"], rtol=0, atol=1e-6 * spread)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == set(case.names(group))
    for parameter, weight in parameters.items():
        assert weight.grad is not None, parameter
        total, norm = case[group + parameter].tolist()
        assert float(weight.grad.double().norm()) == pytest.approx(norm, rel=GRADIENTS), parameter
        slack = GRADIENTS * norm * weight.numel() ** 0.5
        assert float(weight.grad.double().sum()) == pytest.approx(total, abs=slack), parameter
        if f"grad/{parameter}" in case:
            expected = case[f"grad/{parameter}"]
            atol = GRADIENTS * float(expected.abs().max())
            torch.testing.assert_close(weight.grad, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "group"), golden.find(swin, ("relative_position_index",)))
def test_relative_positions(name: str, group: str) -> None:
    index = model_of(name).get_buffer("layers.0.blocks.0.attn.relative_position_index")
    assert torch.equal(index, golden.load(name)[group].flatten())
