"""Triton kernels on the CPU: what makes its interpreter fast enough for the contract.

`tests/conftest.py` switches the interpreter on, where there is no GPU. It takes about 40 us an operation
whatever the size of a tile, so kernels run here with wider tiles than on a GPU; `test_triton.py` runs
some with their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any
from unittest.mock import patch


def why_not() -> str | None:
    """Why kernels cannot be interpreted in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels are compiled in this process, not interpreted"
    return None


@cache
def spare_patches() -> None:
    """Device functions patch triton.language anew at each call, which takes a millisecond; once is enough.

    Masks are checked on the way.
    """
    from triton.runtime import interpreter

    patched = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    builder = interpreter.InterpreterBuilder
    for name, position in {"create_masked_load": 1, "create_masked_store": 2, "create_atomic_rmw": 3}.items():
        setattr(builder, name, _refusing_integers(getattr(builder, name), position))


def _refusing_integers(create: Any, position: int) -> Any:
    """Holds every version to what 3.9 refuses: a scalar condition joined to a mask makes it integers."""

    def checked(self: Any, *args: Any) -> Any:
        mask = args[position]
        if mask is not None and mask.data.dtype != bool:
            raise TypeError(f"mask: expected bool; got {mask.data.dtype}, from a scalar condition?")
        return create(self, *args)

    return checked


def backend(module: str) -> Any:
    """A Triton backend as it is."""
    spare_patches()
    return importlib.import_module(module)


class WideTiles:
    """The Triton backend of ms_deform_attn, a program taking up to 64 queries or 1024 pixels."""

    def __init__(self) -> None:
        spare_patches()
        self.module = importlib.import_module("detr_fast.ops.ms_deform_attn.triton")
        self.tile = self.module.configuration

    def forward(self, *args: Any) -> Any:
        return self._run(self.module.forward, *args)

    def backward(self, *args: Any) -> Any:
        return self._run(self.module.backward, *args)

    def _run(self, function: Any, *args: Any) -> Any:
        def wide(*shape: int, **kind: bool) -> Any:
            return self.tile(*shape, **kind)._replace(block_q=64)

        with patch.multiple(self.module, configuration=wide, _GATHER_PIXELS=1024):
            return function(*args)
