"""The compiled extension `detr_fast._C`, or the reason why it is missing."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch


class NotReady(TypeError):
    """A tensor's memory is not as kernels read it; the function of the extension has done nothing."""


_module: ModuleType | None = None
_error: str | None = None
try:
    _module = importlib.import_module("detr_fast._C")
except ImportError as error:
    _error = f"the compiled extension did not import: {error}"

if _module is not None:
    _module.use_tensors_of(torch, NotReady)

_isa = os.environ.get("DETR_FAST_ISA")
if _module is not None and _isa:
    try:
        _module.set_isa(_isa)
    except ValueError as error:
        raise ValueError(f"DETR_FAST_ISA: {str(error).removeprefix('isa: ')}") from None


def why_not() -> str | None:
    """Why the extension cannot be used, or None where it can."""
    return _error


def why_not_cuda(device: torch.device) -> str | None:
    """Why the extension cannot run kernels on a CUDA device, or None where it can."""
    if _module is None:
        return _error
    if not _module.with_cuda:
        return f"not compiled in: {_module.why_not_cuda}"
    info = _module.cuda_info()
    if info["error"] is not None:
        return f"the CUDA runtime finds no device: {info['error']}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = torch.cuda.current_device() if device.index is None else device.index
    capability, error = _module.cuda_device(index)
    if error is not None:
        return (
            f"no kernels for this GPU (sm_{capability}), only for {info['architectures']}: {error}; "
            "rebuild with DETR_FAST_CUDA_ARCHS=native"
        )
    return None


def extension() -> ModuleType:
    """The extension module; raises ImportError with the reason where it is missing."""
    if _module is None:
        raise ImportError(_error)
    return _module
