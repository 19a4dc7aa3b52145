"""The names under which other code bases call multi-scale deformable attention.

Deformable-DETR, Mask2Former, DINO and their kin do `import MultiScaleDeformableAttention as MSDA`, a CUDA
extension that each builds for itself. After `install()` that import finds this package, on any device:

>>> from detr_fast.integrations import ms_deform_attn
>>> ms_deform_attn.install()

Code that does `from functions import MSDeformAttnFunction` (mmcv: `MultiScaleDeformableAttnFunction`) may
import that from here instead.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn_classic

__all__ = [
    "MSDeformAttnFunction",
    "MultiScaleDeformableAttnFunction",
    "install",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "uninstall",
]

EXTENSION = "MultiScaleDeformableAttention"
FUNCTIONS = ("MSDeformAttnFunction", "MultiScaleDeformableAttnFunction")


class MSDeformAttnFunction:
    """Stands for the official `torch.autograd.Function`: only `apply` is called on it."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """`detr_fast.ops.ms_deform_attn_classic`, differentiable as ever."""
        return ms_deform_attn_classic(
            value,
            value_spatial_shapes,
            value_level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        )


MultiScaleDeformableAttnFunction = MSDeformAttnFunction


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """The extension's forward: [B, Q, H * D], see `detr_fast.ops.ms_deform_attn_classic`."""
    return ms_deform_attn_classic(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
    )


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The extension's backward: the gradients of value, locations and weights.

    It calls the forward once more, as autograd wants it; `MSDeformAttnFunction` does not.
    """
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_classic(
            inputs[0], spatial_shapes, level_start_index, inputs[1], inputs[2], im2col_step
        )
    grad_value, grad_locations, grad_weights = torch.autograd.grad(output, inputs, grad_output)
    return grad_value, grad_locations, grad_weights


def install(name: str = EXTENSION) -> None:
    """Puts a module of the extension's name into `sys.modules`, for code that is imported afterwards.

    Args:
        name: under which code imports it; "detrex._C" and "groundingdino._C" are the same extension.

    Raises:
        RuntimeError: an extension of that name has been imported already.
    """
    install_module(
        name,
        {
            "ms_deform_attn_forward": ms_deform_attn_forward,
            "ms_deform_attn_backward": ms_deform_attn_backward,
        },
    )


def uninstall(name: str = EXTENSION) -> None:
    """Takes the module of `install` out of `sys.modules`; leaves any other there."""
    if hasattr(sys.modules.get(name), "detr_fast"):
        del sys.modules[name]


def install_module(name: str, contents: dict[str, Any]) -> None:
    """Puts a module of ours into `sys.modules`, unless there is another's."""
    present = sys.modules.get(name)
    if present is not None and not hasattr(present, "detr_fast"):
        raise RuntimeError(f"{name} has been imported from {getattr(present, '__file__', 'elsewhere')}")
    module = ModuleType(name, __doc__)
    vars(module).update(contents, detr_fast=True)
    sys.modules[name] = module
