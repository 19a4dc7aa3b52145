"""What every operator promises, as data. `test_contract.py` holds each backend to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.operator import Operator

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Inputs of one call: `inputs(generator)` gives keyword arguments, floats as float64 on the CPU."""

    name: str
    inputs: Callable[[torch.Generator], Inputs]


@dataclass(frozen=True)
class Tolerance:
    """Largest error allowed, relative to the largest entry of the float64 reference."""

    forward: float
    backward: float = 0.0


@dataclass(frozen=True)
class BadInput:
    """A change to good inputs that must raise `error` with a message matching `message` (a regex)."""

    name: str
    change: Callable[[Inputs], Inputs]
    error: type[Exception]
    message: str


@dataclass(frozen=True)
class Contract:
    """One public function, its cases and what is promised of it.

    cast: arguments converted to the tested dtype; every other float argument is float32 at least.
    differentiable: arguments that get gradients.
    check: called as check(inputs64, actual, expected) in place of a comparison by closeness, where
        several answers are right (assignments).
    gradient_modes: keyword arguments under which a GPU backend's gradients are tested.
    cases[0] is the typical case: it alone meets the compiler, export and bad inputs.
    """

    operator: Operator
    function: Callable[..., Any]
    cases: Sequence[Case]
    dtypes: Mapping[torch.dtype, Tolerance]
    cast: tuple[str, ...]
    differentiable: tuple[str, ...] = ()
    check: Callable[[Inputs, Any, Any], None] | None = None
    bad_inputs: Sequence[BadInput] = field(default_factory=tuple)
    gradient_modes: Sequence[Mapping[str, Any]] = ({},)

    @property
    def name(self) -> str:
        return self.function.__name__


def convert(inputs: Inputs, contract: Contract, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """The case's inputs in the tested dtype; coordinates never narrower than float32."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32

    def one(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return value.to(device, dtype if name in contract.cast else wide)
        return value.to(device)

    return {name: one(name, value) for name, value in inputs.items()}


def to_float64(inputs: Inputs) -> Inputs:
    """The very numbers of `inputs`, widened: the reference sees what the backend saw."""
    return {
        name: value.cpu().double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
