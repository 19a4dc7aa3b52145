"""The compiled extension `detr_fast._C`, or the reason why it is missing."""

from __future__ import annotations

from types import ModuleType

# torch comes first: its OpenMP runtime must be in the process before the extension asks for one.
import torch  # noqa: F401

_C: ModuleType | None
_error: str | None

try:
    from detr_fast import _C
except ImportError as error:
    _C, _error = None, f"the compiled extension did not import: {error}"
else:
    _error = None


def why_not() -> str | None:
    """Why the extension cannot be used, or None where it can."""
    return _error


def extension() -> ModuleType:
    """The extension module; raises ImportError with the reason where it is missing."""
    if _C is None:
        raise ImportError(_error)
    return _C
