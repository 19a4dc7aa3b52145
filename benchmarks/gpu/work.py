"""What a call of the cases beside attention must do at least: bytes to move, operations to compute."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import singledispatch
from typing import Any

from torch import Tensor

from benchmarks.cases import (
    FORWARD,
    AssignmentInputs,
    DetectionInputs,
    MaskCostInputs,
    MaskInputs,
    PointSampleInputs,
)
from benchmarks.gpu.loss_cases import LossInputs
from benchmarks.gpu.model_cases import ModelInputs


@dataclass(frozen=True)
class Work:
    """bytes: read and written once. flops: of products and convolutions, at the rate of `unit`."""

    bytes: int
    flops: int = 0
    unit: str = "fp32"


@singledispatch
def least_work(inputs: Any, pass_: str) -> Work:
    """Everything that a call of `inputs` must read and write once, backward also the gradients."""
    raise TypeError(f"inputs: no floor is known for {type(inputs).__name__}")


@least_work.register
def _(inputs: AssignmentInputs, pass_: str) -> Work:
    return Work(_bytes(inputs.target_major) + 8 * inputs.target_major.shape[0])


@least_work.register
def _(inputs: DetectionInputs, pass_: str) -> Work:
    predictions = _bytes(inputs.predictions.logits, inputs.predictions.boxes)
    targets = _bytes(inputs.labels, inputs.boxes)
    if pass_ == FORWARD:
        return Work(predictions + targets + 8 * inputs.predictions.logits.shape[0] * len(inputs.labels))
    return Work(2 * predictions + targets)


@least_work.register
def _(inputs: MaskInputs, pass_: str) -> Work:
    """Maps of all queries for the matching, and a gradient of each; targets' masks once."""
    predictions = _bytes(inputs.predictions.logits, inputs.predictions.masks)
    targets = sum(_bytes(*target.values()) for target in inputs.targets)
    return Work((1 if pass_ == FORWARD else 2) * predictions + targets)


@least_work.register
def _(inputs: MaskCostInputs, pass_: str) -> Work:
    """Two products of an image's queries and targets over their points: for the entropy and for the dice."""
    layers, _, queries, points = inputs.mask_values.shape
    pairs = layers * len(inputs.labels) * queries
    read = _bytes(inputs.logits, inputs.mask_values, inputs.labels, inputs.target_values)
    return Work(read + 4 * pairs, 2 * 2 * pairs * points)


@least_work.register
def _(inputs: PointSampleInputs, pass_: str) -> Work:
    """Each chosen map once, or four values a point where those are fewer."""
    chosen = _bytes(inputs.maps[:1]) * len(inputs.points)
    channels = inputs.maps.shape[1] * inputs.maps.element_size()
    read = min(chosen, 4 * channels * inputs.points[..., 0].numel()) + _bytes(inputs.points)
    if pass_ == FORWARD:
        return Work(read + _bytes(inputs.grad_output))  # the output is of grad_output's size
    return Work(read + 2 * _bytes(inputs.grad_output) + _bytes(inputs.maps) + _bytes(inputs.points))


@least_work.register
def _(inputs: LossInputs, pass_: str) -> Work:
    return Work(2 * _bytes(inputs.predictions) + _bytes(inputs.targets, inputs.query))


@least_work.register
def _(inputs: ModelInputs, pass_: str) -> Work:
    """Weights and pixels once; convolutions and products as torch counts them, without our operators."""
    element = 2 if inputs.dtype == "bf16" else 4
    elements = inputs.pixels.numel() + sum(p.numel() for p in inputs.model.parameters())
    # in float32 torch convolves in TF32 on a GPU that has it
    return Work(element * elements, inputs.flops(), "bf16" if inputs.dtype == "bf16" else "tf32")


def on_device(inputs: Any, device: Any) -> Any:
    """The same inputs in the device's memory."""
    if hasattr(inputs, "to"):
        return inputs.to(device)
    if is_dataclass(inputs) and not isinstance(inputs, type):
        return type(inputs)(**{f.name: on_device(getattr(inputs, f.name), device) for f in fields(inputs)})
    if isinstance(inputs, dict):
        return {name: on_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, list):
        return [on_device(value, device) for value in inputs]
    return inputs


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
