"""GPU backends executed without a GPU, for the contract: in each test one of them takes the place of the
backend of its kind and serves tensors on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from detr_fast.ops.operator import Backend, Operator
from tests.ops import interpreter
from tests.ops.contract import Case, Contract
from tests.paths import ROOT


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


def _triton(operator: str) -> Simulated:
    if operator == "ms_deform_attn":
        return Simulated("triton", interpreter.WideTiles, slow=True)
    backend = partial(interpreter.backend, f"detr_fast.ops.{operator}.triton")
    return Simulated("triton", backend, slow=True, without=("large",))


def _with(file: str) -> list[str]:
    """The operators that have such a file."""
    return sorted(path.parent.name for path in (ROOT / "detr_fast" / "ops").glob(f"*/{file}"))


SLOW_ON_HOST = ("linear_assignment",)
SIMULATED = {
    ("host", name): Simulated("cuda", _host(name), slow=name in SLOW_ON_HOST) for name in _with("cuda.py")
}
if interpreter.why_not() is None:
    SIMULATED |= {("triton", name): _triton(name) for name in _with("triton.py")}
