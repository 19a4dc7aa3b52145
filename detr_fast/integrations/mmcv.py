"""mmcv's deformable attention: its module, its function, and its compiled extension where it was not built.

>>> from detr_fast.integrations import mmcv
>>> mmcv.install()  # before `import mmcv.ops`, only for mmcv-lite, which has no compiled extension
>>> print(mmcv.patch())  # after `import mmcv.ops`
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from detr_fast.integrations import ms_deform_attn as extension
from detr_fast.integrations.patching import Patch

__all__ = ["install", "patch", "patched", "uninstall", "unpatch"]

EXTENSION = "mmcv._ext"
_PATCH = Patch("mmcv", "mmcv")
patch, unpatch, patched = _PATCH.patch, _PATCH.unpatch, _PATCH.patched


def install() -> None:
    """Puts a module `mmcv._ext` into `sys.modules` in which deformable attention runs on any device.

    With it mmcv-lite can import `mmcv.ops`, and mmdetection its DETR family. The other operators of mmcv are
    there by name and raise when they are called.

    Raises:
        RuntimeError: mmcv has its own extension.
    """
    spec = importlib.util.find_spec("mmcv")
    for place in (spec and spec.submodule_search_locations) or ():
        if found := next(Path(place).glob("_ext.*"), None):
            raise RuntimeError(f"mmcv has its own extension, {found}: patch() needs no other")
    extension.install_module(
        EXTENSION,
        {
            "ms_deform_attn_forward": extension.ms_deform_attn_forward,
            "ms_deform_attn_backward": ms_deform_attn_backward,
            "__getattr__": _missing,
        },
    )


def uninstall() -> None:
    """Takes the module of `install` out of `sys.modules`; leaves any other there."""
    extension.uninstall(EXTENSION)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """The extension's backward, as mmcv calls it: gradients are written where the arguments say."""
    inputs = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    found = extension.ms_deform_attn_backward(*inputs, grad_output, im2col_step)
    for into, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        into.copy_(gradient)


def _missing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv._ext.{name}: mmcv was installed without its compiled extension; detr_fast stands for its "
            "deformable attention alone"
        )

    return missing
