"""Pickled numpy arrays and numbers, which become tensors and Python's numbers."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.checkpoints.pickle_machine import Names, StandIn, interpret
from detr_fast.checkpoints.pickle_values import PLAIN_NAMES, Contents, Encoded, values

ARRAY_TYPES = re.compile(r"[fiu][1248]|b1|c8|c16")


class ElementType(StandIn):
    """Stands for numpy.dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not ARRAY_TYPES.fullmatch(name):
            raise ValueError(f"expected arrays of numbers; got the type {str(name)[:40]!r}")
        self.type = np.dtype(name)

    def build(self, state: Any) -> None:
        if state[1] == ">":
            self.type = self.type.newbyteorder(">")


class Array(Contents):
    """Stands for numpy.ndarray, which takes shape, type and contents once it is made."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without shape, type and contents")
        self.state = state

    def value(self) -> Tensor:
        if self.state is None:
            raise ValueError("an array without contents")
        _, shape, element, fortran, data = self.state
        return _tensor(data, element, shape, fortran)

    @property
    def nbytes(self) -> int:
        data = None if self.state is None else self.state[4]
        if isinstance(data, Encoded):
            return data.nbytes
        return len(data) if isinstance(data, str | bytes | bytearray) else 0


def _scalar(element: ElementType, data: Any) -> int | float | bool | complex:
    return _tensor(data, element, (), False).item()


def _from_buffer(data: Any, element: ElementType, shape: Any, order: str) -> Array:
    array = Array()
    array.state = (1, shape, element, order == "F", data)
    return array


def _tensor(data: Any, element: Any, shape: Any, fortran: Any) -> Tensor:
    if isinstance(data, Encoded):
        data = data.value()
    elif isinstance(data, str):  # of Python 2, where strings were bytes
        data = data.encode("latin1")
    if not isinstance(element, ElementType) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without type or contents")
    shape = counts(shape, "shape")
    if math.prod(shape) * element.type.itemsize != len(data):
        raise ValueError(f"an array of shape {list(shape)} in {len(data)} bytes")
    array = np.frombuffer(data, element.type).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(element.type.newbyteorder("="), order="C"))


def counts(x: Any, what: str) -> tuple[int, ...]:
    """`x` as a shape or strides, checked."""
    if not isinstance(x, tuple) or len(x) > 32 or not all(type(n) is int and 0 <= n < 2**62 for n in x):
        raise ValueError(f"expected a {what} of counts; got a {type(x).__name__}")
    return x


NUMPY_NAMES: Names = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): ElementType,
    **{
        (f"{core}.{module}", name): make
        for core in ("numpy.core", "numpy._core")  # before and since numpy 2
        for module, name, make in (
            ("multiarray", "_reconstruct", Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


def read_pickle(content: bytes) -> Any:
    """What a pickle of dicts, lists, tuples, strings, numbers and numpy arrays holds; arrays come as tensors.

    Raises Refused for a pickle that names anything else, and errors of many kinds for a damaged one.
    """
    return values(interpret(io.BytesIO(content), {**PLAIN_NAMES, **NUMPY_NAMES}), 2 * len(content))
