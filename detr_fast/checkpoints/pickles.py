"""Pickles of numpy arrays and plain data, read without running anything that they ask for.

Unpickling calls what a file names. Here a file gets none of the real things: the few names that such pickles
need stand for the classes below, which only store what they are given, and any other name ends the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARRAY_TYPES = re.compile(r"[fiu][1248]|b1")


class Refused(Exception):
    """The file names something that could run code."""


def read_pickle(content: bytes) -> Any:
    """What a pickle of dicts, lists, tuples, strings, numbers and numpy arrays holds; arrays come as tensors.

    Raises Refused for a pickle that names anything else, and errors of many kinds for a damaged one.
    """
    _check_opcodes(content)
    # strings of Python 2, which arrays were once pickled by
    found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    return _as_tensors(found, {})


def _check_opcodes(content: bytes) -> None:
    """What unpickling does without asking for a name: make room for a claimed size, take a known class."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name.startswith("EXT"):
            raise Refused(f"the registered extension {argument}")
        if opcode.name.endswith("PUT") and argument is not None and int(argument) > count:
            raise ValueError(f"a memo of {argument} entries after {count} instructions")


class _ElementType:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not ARRAY_TYPES.fullmatch(name):
            raise ValueError(f"expected arrays of numbers; got the type {name!r}")
        self.type = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.type = self.type.newbyteorder(">")


class _Array:
    """Stands for numpy.ndarray, which takes shape, type and contents once it is made."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        if self.state is None:
            raise ValueError("an array without contents")
        _, shape, element, fortran, data = self.state
        return _tensor(data, element, shape, fortran)


class _Dict(dict[Any, Any]):
    """Stands for collections.OrderedDict; what state dicts keep beside their entries is left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Callable:
    """A function as pickles may call it, and do nothing else with it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a name that is given another meaning")


def _scalar(element: _ElementType, data: Any) -> int | float | bool:
    return _tensor(data, element, (), False).item()


def _from_buffer(data: Any, element: _ElementType, shape: Any, order: str) -> _Array:
    array = _Array()
    array.state = (1, shape, element, order == "F", data)
    return array


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"expected bytes as latin1; got {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ElementType,
    ("collections", "OrderedDict"): _Dict,
    # how protocols before 3 write bytes
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
    KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Callable:
        if (module, name) not in KNOWN:
            raise Refused(f"{module}.{name}")
        return _Callable(KNOWN[module, name])


def _tensor(data: Any, element: Any, shape: Any, fortran: Any) -> Tensor:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(element, _ElementType) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without type or contents")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape!r:.80}")
    if math.prod(shape) * element.type.itemsize != len(data):
        raise ValueError(f"an array of shape {list(shape)} in {len(data)} bytes")
    array = np.frombuffer(data, element.type).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(element.type.newbyteorder("="), order="C"))


def _as_tensors(x: Any, done: dict[int, Any]) -> Any:
    """`x` with tensors for arrays; `done` holds what each part became, as parts may occur many times."""
    if id(x) not in done:
        if isinstance(x, _Array):
            done[id(x)] = x.tensor()
        elif isinstance(x, dict):
            done[id(x)] = {key: _as_tensors(value, done) for key, value in x.items()}
        elif isinstance(x, list | tuple):
            done[id(x)] = type(x)(_as_tensors(value, done) for value in x)
        elif x is None or isinstance(x, str | bytes | int | float):
            return x
        else:
            raise ValueError(f"expected arrays and plain data; got a {type(x).__name__.lstrip('_')}")
    return done[id(x)]
