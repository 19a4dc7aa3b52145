"""Deformable attention for the kernel mechanism of transformers, the package `kernels`.

>>> from detr_fast.integrations import kernels
>>> kernels.register_kernels()
>>> model.use_kernels = True

It reaches the models whose core is a module, ten of fifteen, and replaces that core alone;
`detr_fast.accelerate` reaches them all and fuses the softmax too.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import nn

from detr_fast.integrations.attention_forms import CoreAttention

__all__ = ["kernel_mapping", "register_kernels"]

LAYER = "MultiScaleDeformableAttention"


class MultiScaleDeformableAttention(nn.Module):
    """The layer, with the arguments of transformers' core."""

    can_torch_compile = True
    has_backward = True

    forward: Any = CoreAttention.forward


class InProcess:
    """What `kernels` takes for the repository of a layer: it loads one that is here."""

    layer_name = LAYER

    def load(self) -> type[nn.Module]:
        """The layer's class."""
        return MultiScaleDeformableAttention


def kernel_mapping() -> dict[str, dict[str, Any]]:
    """The layer on CPUs and CUDA GPUs, for `kernels.use_kernel_mapping`."""
    return {LAYER: dict.fromkeys(("cpu", "cuda"), InProcess())}


def register_kernels() -> None:
    """Registers the layer with `kernels`, and in transformers' mapping, which `set_use_kernels` registers.

    Raises:
        ImportError: the package `kernels` is not installed.
    """
    try:
        package = importlib.import_module("kernels")
    except ImportError as error:
        raise ImportError("register_kernels needs the package kernels: pip install kernels") from error
    mapping = kernel_mapping()
    package.register_kernel_mapping(mapping)
    hub = sys.modules.get("transformers.integrations.hub_kernels")
    known = getattr(hub, "get_kernel_mapping_transformers", None)
    if known is not None and isinstance(own := known(), dict):
        own.update(mapping)
