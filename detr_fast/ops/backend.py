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

ORDER = ("cuda", "triton", "native", "reference")


class BackendUnavailable(RuntimeError):
    """A pinned backend cannot run the call; the message names the reason."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator: a module, or an object with the same functions.

    `why_not(device, dtype)` returns the reason why it cannot run on tensors of that device and dtype,
    or None where it can; it must depend on nothing else, because choices are remembered.
    """

    name: str
    implementation: Any
    why_not: Callable[[torch.device, torch.dtype], str | None]


class Operator:
    """The backends of one operator, best first."""

    def __init__(self, name: str, *backends: Backend) -> None:
        self.name = name
        self.backends = {b.name: b for b in sorted(backends, key=lambda b: ORDER.index(b.name))}
        self._chosen: dict[tuple[torch.device, torch.dtype, str | None], Any] = {}

    def select(self, device: torch.device, dtype: torch.dtype, pin: str | None = None) -> Any:
        """The implementation that serves tensors of `device` and `dtype`."""
        pin = pin or _pins.get(self.name) or _pins.get("*")
        key = (device, dtype, pin)
        found = self._chosen.get(key)
        if found is None:
            found = self._chosen[key] = self._search(device, dtype, pin)
        return found

    def explain(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """For each backend name of `ORDER`: None where it can run, else the reason why not."""
        reasons: dict[str, str | None] = {}
        for name in ORDER:
            backend = self.backends.get(name)
            if backend is None:
                reasons[name] = f"{self.name} has no {name} backend in this version"
            else:
                reasons[name] = backend.why_not(device, dtype)
        return reasons

    def _search(self, device: torch.device, dtype: torch.dtype, pin: str | None) -> Any:
        if pin is not None:
            _check_name(pin)
        reasons = self.explain(device, dtype)
        for name in ORDER if pin is None else (pin,):
            if reasons[name] is None:
                return self.backends[name].implementation
        listing = "; ".join(f"{name}: {reasons[name]}" for name in (ORDER if pin is None else (pin,)))
        raise BackendUnavailable(f"{self.name} on {device} with {dtype}: {listing}")


@contextmanager
def use_backend(backend: str | None = None, **per_operator: str) -> Iterator[None]:
    """Pins a backend for all operators, or for some, inside a `with` block.

    The pin holds for the whole process, so that a backward pass on another thread obeys it too.

    >>> with use_backend("reference"): ...
    >>> with use_backend(ms_deform_attn="native"): ...
    """
    global _pins
    pins = dict(per_operator) if backend is None else {"*": backend, **per_operator}
    for name in pins.values():
        _check_name(name)
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
        _check_name(backend.strip())
        pins[operator.strip() or "*"] = backend.strip()
    return pins


def _check_name(backend: str) -> None:
    if backend not in ORDER:
        raise ValueError(f"backend: expected one of {', '.join(ORDER)}; got {backend!r}")


_pins: Mapping[str, str] = parse_pins(os.environ.get("DETR_FAST_BACKEND", ""))
