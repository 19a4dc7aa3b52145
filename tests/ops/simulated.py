"""GPU backends executed without a GPU, for the contract: in each test one of them takes the place of the
backend of its kind and serves tensors on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from detr_fast.ops.operator import Backend, Operator
from tests.ops import interpreter
from tests.ops.contract import Case, Contract


@dataclass(frozen=True)
class Simulated:
    """A backend's name in `backend.ORDER`, and what gives an implementation that takes CPU tensors.

    slow: dtypes other than float32 meet the typical case only, and bits are compared in float32 only.
    without: cases that would take minutes.
    """

    backend: str
    implementation: Callable[[], Any]
    slow: bool = False
    without: tuple[str, ...] = ()


@contextmanager
def simulated(operator: Operator, label: str) -> Iterator[str]:
    """Puts the simulation `label` of the operator in place; gives the name to pin."""
    stand_in = SIMULATED[label, operator.name]
    backends = operator.backends
    backend = Backend(stand_in.backend, stand_in.implementation(), lambda device, dtype: None)
    operator.backends = {**backends, backend.name: backend}
    operator._chosen.clear()
    try:
        yield backend.name
    finally:
        operator.backends = backends
        operator._chosen.clear()


def labels(operator: Operator) -> list[str]:
    """The simulations of an operator: `host` (CUDA sources run on the CPU), `triton` (its interpreter)."""
    return [label for label, name in SIMULATED if name == operator.name]


def is_slow(operator: Operator, label: str) -> bool:
    return (label, operator.name) in SIMULATED and SIMULATED[label, operator.name].slow


def cases(contract: Contract, label: str, dtype: torch.dtype) -> list[Case]:
    """The cases of a contract that a backend meets; all of them, where it is not simulated."""
    simulation = SIMULATED.get((label, contract.operator.name))
    if simulation is None:
        return list(contract.cases)
    chosen = contract.cases[:1] if simulation.slow and dtype != torch.float32 else contract.cases
    return [case for case in chosen if case.name not in simulation.without]


def _host(operator: str) -> Callable[[], Any]:
    """The operator's CUDA backend over the module that executes the kernels on the CPU."""

    def implementation() -> Any:
        from tests.simt.build import simt_module

        return importlib.import_module(f"detr_fast.ops.{operator}.cuda").Cuda(simt_module)

    return implementation


SIMULATED = {
    ("host", "ms_deform_attn"): Simulated("cuda", _host("ms_deform_attn")),
    ("host", "box_match_cost"): Simulated("cuda", _host("box_match_cost")),
    ("host", "linear_assignment"): Simulated("cuda", _host("linear_assignment"), slow=True),
}
if interpreter.why_not() is None:
    SIMULATED["triton", "ms_deform_attn"] = Simulated("triton", interpreter.WideTiles, slow=True)
    for name in (
        "box_match_cost",
        "linear_assignment",
        "mask_match_cost",
        "class_loss",
        "box_loss",
        "point_sample",
    ):
        backend = partial(interpreter.backend, f"detr_fast.ops.{name}.triton")
        SIMULATED["triton", name] = Simulated("triton", backend, slow=True, without=("large",))
