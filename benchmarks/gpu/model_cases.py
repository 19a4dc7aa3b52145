"""Whole models of a GPU run: inference at the size of a COCO image, beside transformers'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import FORWARD
from benchmarks.contract import Contract, ContractFailed
from benchmarks.peers.models import Forward, our_forward, our_model, their_forward
from detr_fast.ops import use_backend

# Largest error, of the Euclidean norm; float32 convolutions are TF32's on a GPU that has it.
TOLERANCES = {"fp32": 5e-3, "bf16": 1e-1}


@dataclass(frozen=True)
class ModelInputs:
    """name: of `peers.models`. dtype: "fp32", or "bf16" for autocast to bfloat16. pixels: [B, 3, H, W]."""

    name: str
    dtype: str
    model: nn.Module
    pixels: Tensor

    def run(self, forward: Forward) -> dict[str, Tensor]:
        """The last layer's classes, and its boxes or masks."""
        autocast = torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=self.dtype == "bf16")
        with torch.no_grad(), autocast:
            classes, places = forward(self.pixels)
        return {"classes": classes, "boxes or masks": places}

    def flops(self) -> int:
        """Of the convolutions and matrix products in one call."""
        with FlopCounterMode(display=False) as counter:
            self.run(our_forward(self.model))
        return int(counter.get_total_flops())


@dataclass(frozen=True)
class ModelCase:
    """model: one of `peers.models`, at random weights."""

    model: str
    images: int
    dtype: str
    size: tuple[int, int] = (800, 1066)
    operator: str = "model"
    passes: tuple[str, ...] = (FORWARD,)

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.model} {height}x{width} B={self.images}"

    def inputs(self, generator: Generator) -> ModelInputs:
        pixels = torch.randn(self.images, 3, *self.size, generator=generator)
        return ModelInputs(self.name, self.dtype, _model(self.model, generator.device), pixels)


@functools.lru_cache(maxsize=1)  # cases of one model follow each other
def _model(name: str, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        return our_model(name).to(device)


def ours(pins: Mapping[str, str]) -> Callable[[ModelInputs], Callable[[], dict[str, Tensor]]]:
    """What makes the timed call of our model with the operators pinned."""

    def prepare(inputs: ModelInputs) -> Callable[[], dict[str, Tensor]]:
        forward = our_forward(inputs.model)

        def call() -> dict[str, Tensor]:
            with use_backend(**pins):
                return inputs.run(forward)

        return call

    return prepare


def theirs(name: str) -> Callable[[ModelInputs], Callable[[], dict[str, Tensor]]]:
    """The same of transformers' model with the same weights."""

    def prepare(inputs: ModelInputs) -> Callable[[], dict[str, Tensor]]:
        forward = their_forward(name, inputs.model)
        return lambda: inputs.run(forward)

    return prepare


@dataclass(frozen=True)
class _Expected:
    dtype: str
    values: dict[str, Tensor]


def _expected(inputs: ModelInputs, pass_: str) -> _Expected:
    """In float32, with the operators' references."""
    exact = ModelInputs(inputs.name, "fp32", inputs.model, inputs.pixels)
    with use_backend("reference"):
        return _Expected(inputs.dtype, exact.run(our_forward(inputs.model)))


def _verify(expected: _Expected, result: Mapping[str, Tensor]) -> None:
    for name, want in expected.values.items():
        error = float((result[name].double() - want).norm() / want.double().norm())
        if not error <= TOLERANCES[expected.dtype]:
            raise ContractFailed(f"{name}: relative error {error:.1e} over {TOLERANCES[expected.dtype]:.0e}")


MODEL = Contract(_expected, _verify)
