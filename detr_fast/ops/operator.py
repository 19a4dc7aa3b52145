"""Choosing a backend for an operator call, pinning one, and explaining the choice.

Every operator owns one `Operator` table. A call takes the first backend of `ORDER` that can run it;
a pin (argument, `use_backend`, or the environment variable `DETR_FAST_BACKEND`, in that order of
precedence) leaves no choice and raises `BackendUnavailable` with the reason if it cannot run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

ORDER = ("cuda", "triton", "cpu", "reference")
_ALIASES = {"native": "cpu"}  # its name in version 0.1


class BackendUnavailable(RuntimeError):
    """A pinned backend cannot run the call; the message names the reason."""


def always(device: torch.device, dtype: torch.dtype) -> None:
    """The `why_not` of a backend that runs anywhere."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator.

    name: of `ORDER`.
    implementation: a module, or an object with the same functions: `forward` and, where the operator has a
        gradient, `backward`, as the operator's `Registered` calls them.
    why_not: the reason why it cannot run on tensors of a device and dtype, or None where it can. Answers are
        remembered, so they must depend on nothing else.
    why_not_shape: the same for an operator's `shape_key`, where an implementation has limits.
    """

    name: str
    implementation: Any
    why_not: Callable[[torch.device, torch.dtype], str | None] = always
    why_not_shape: Callable[[Any], str | None] | None = None


class Operator:
    """The backends of one operator, best first."""

    def __init__(self, name: str, *backends: Backend) -> None:
        self.name = name
        self.backends = {b.name: b for b in sorted(backends, key=lambda b: ORDER.index(b.name))}
        self._chosen: dict[tuple[torch.device, torch.dtype, str | None, Any], Any] = {}
        _names.add(name)

    def select(
        self, device: torch.device, dtype: torch.dtype, pin: str | None = None, shape_key: Any = None
    ) -> Any:
        """The implementation that serves tensors of `device` and `dtype`.

        shape_key: what the backends' `why_not_shape` decide by; few different ones, as each is remembered.
        """
        if _pins:
            pin = pin or _pins.get(self.name) or _pins.get("*")
        key = (device, dtype, pin, shape_key)
        found = self._chosen.get(key)
        if found is None:
            found = self._chosen[key] = self._search(device, dtype, pin, shape_key)
        return found

    def explain(
        self, device: torch.device, dtype: torch.dtype, shape_key: Any = None
    ) -> dict[str, str | None]:
        """For each backend name of `ORDER`: None where it can run, else the reason why not."""
        reasons: dict[str, str | None] = {}
        for name in ORDER:
            backend = self.backends.get(name)
            if backend is None:
                reasons[name] = f"{self.name} has no {name} backend in this version"
                continue
            reasons[name] = backend.why_not(device, dtype)
            if reasons[name] is None and backend.why_not_shape is not None and shape_key is not None:
                reasons[name] = backend.why_not_shape(shape_key)
        return reasons

    def _search(self, device: torch.device, dtype: torch.dtype, pin: str | None, shape_key: Any) -> Any:
        _check_operators(_pins)
        names = ORDER if pin is None else (_checked(pin),)
        reasons = self.explain(device, dtype, shape_key)
        for name in names:
            if reasons[name] is None:
                return self.backends[name].implementation
        listing = "; ".join(f"{name}: {reasons[name]}" for name in names)
        raise BackendUnavailable(f"{self.name} on {device} with {dtype}: {listing}")


@contextmanager
def use_backend(backend: str | None = None, **per_operator: str) -> Iterator[None]:
    """Pins a backend for all operators, or for some, inside a `with` block.

    The pin holds for the whole process, so that a backward pass on another thread obeys it too.

    >>> with use_backend("reference"): ...
    >>> with use_backend(ms_deform_attn="cpu"): ...

    Args:
        backend: one of "cuda", "triton", "cpu" and "reference", for all operators.
        **per_operator: operator=backend, for single ones.

    Raises:
        ValueError: there is no such backend or operator.
    """
    global _pins
    pins = dict(per_operator) if backend is None else {"*": backend, **per_operator}
    pins = {operator: _checked(name) for operator, name in pins.items()}
    _check_operators(pins)
    before = _pins
    # a pin for all operators overrides any earlier pin of a single one
    _pins = {**({} if backend is not None else before), **pins}
    try:
        yield
    finally:
        _pins = before


def parse_pins(text: str) -> dict[str, str]:
    """Reads `DETR_FAST_BACKEND`: one backend for all operators, or `operator=backend,...`."""
    pins: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        operator, _, backend = item.rpartition("=")
        pins[operator.strip() or "*"] = _checked(backend.strip())
    return pins


def check_environment() -> None:
    """Raises where `DETR_FAST_BACKEND` names an operator that does not exist; once all are known."""
    try:
        _check_operators(_pins)
    except ValueError as error:
        raise ValueError(f"DETR_FAST_BACKEND: {error}") from None


def _checked(backend: str) -> str:
    backend = _ALIASES.get(backend, backend)
    if backend not in ORDER:
        raise ValueError(f"backend: expected one of {', '.join(ORDER)}; got {backend!r}")
    return backend


def _check_operators(pins: Mapping[str, str]) -> None:
    for name in pins:
        if name != "*" and name not in _names:
            raise ValueError(f"operator: expected one of {', '.join(sorted(_names))}; got {name!r}")


_names: set[str] = set()
_pins: Mapping[str, str] = parse_pins(os.environ.get("DETR_FAST_BACKEND", ""))
