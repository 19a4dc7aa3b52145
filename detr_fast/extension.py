"""The compiled extension `detr_fast._C`, or the reason why it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

# torch comes first: its OpenMP runtime must be in the process before the extension asks for one.
import torch  # noqa: F401

_module: ModuleType | None = None
_error: str | None = None
try:
    _module = importlib.import_module("detr_fast._C")
except ImportError as error:
    _error = f"the compiled extension did not import: {error}"


def why_not() -> str | None:
    """Why the extension cannot be used, or None where it can."""
    return _error


def extension() -> ModuleType:
    """The extension module; raises ImportError with the reason where it is missing."""
    if _module is None:
        raise ImportError(_error)
    return _module
