"""Our layer fits what `kernels` asks of one and transformers' core, and is registered in both places."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention as Core

from detr_fast.integrations import kernels


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Stand-ins: what was registered with the package `kernels`, and transformers' mapping."""
    registered: dict[str, Any] = {}
    own: dict[str, Any] = {kernels.LAYER: {"cuda": "another's"}}
    package, hub = ModuleType("kernels"), ModuleType("hub_kernels")
    vars(package)["register_kernel_mapping"] = registered.update
    vars(hub)["get_kernel_mapping_transformers"] = lambda: own
    monkeypatch.setitem(sys.modules, "kernels", package)
    monkeypatch.setitem(sys.modules, "transformers.integrations.hub_kernels", hub)
    return registered, own


def test_the_layer_is_registered_in_both_places(packages: tuple[dict[str, Any], dict[str, Any]]) -> None:
    kernels.register_kernels()
    for mapping in packages:
        repositories = mapping[kernels.LAYER]
        assert set(repositories) == {"cpu", "cuda"}
        assert repositories["cuda"].load() is kernels.MultiScaleDeformableAttention


def test_the_layer_is_what_kernels_accepts() -> None:
    layer = kernels.MultiScaleDeformableAttention
    assert layer.__init__ is nn.Module.__init__
    assert set(dir(layer)) - set(dir(nn.Module)) <= {"can_torch_compile", "has_backward"}
    ours, theirs = (list(inspect.signature(x.forward).parameters.values()) for x in (layer, Core))
    assert [(x.name, x.kind) for x in ours] == [(x.name, x.kind) for x in theirs]


def test_the_layer_computes_what_the_core_does() -> None:
    shapes = [(3, 4), (2, 2)]
    given = {
        "value": torch.randn(2, 16, 3, 8),
        "value_spatial_shapes": torch.tensor(shapes),
        "value_spatial_shapes_list": shapes,
        "level_start_index": torch.tensor([0, 12]),
        "sampling_locations": torch.rand(2, 5, 3, 2, 4, 2),
        "attention_weights": torch.rand(2, 5, 3, 2, 4),
        "im2col_step": 64,
    }
    ours, theirs = kernels.MultiScaleDeformableAttention()(**given), Core()(**given)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match="pip install kernels"):
        kernels.register_kernels()
