"""The cases of a GPU run, in the order of their weight, and their inputs in each precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import AttentionCase, AttentionInputs

COCO_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
PLAIN, FUSED = "plain", "fused"
# The arguments that each form differentiates.
ARGUMENTS = {PLAIN: ("value", "locations", "weights"), FUSED: ("value", "offsets", "logits")}


@dataclass(frozen=True)
class Precision:
    """Types: of value and output; of the plain form's locations and weights; of the fused form's inputs."""

    name: str
    value: torch.dtype
    locations: torch.dtype
    offsets: torch.dtype


FP32 = Precision("fp32", torch.float32, torch.float32, torch.float32)
# What autocast leaves: linear layers give bfloat16, softmax and references float32.
BF16 = Precision("bf16", torch.bfloat16, torch.float32, torch.bfloat16)
ALL_BF16 = Precision("bf16 locations", torch.bfloat16, torch.bfloat16, torch.bfloat16)


@dataclass(frozen=True)
class Job:
    """One case in one precision and form. compiled: `torch.compile` of the pure-PyTorch path, only."""

    case: AttentionCase
    precision: Precision
    form: str
    compiled: bool = False


def _encoder(images: int) -> AttentionCase:
    return AttentionCase(f"encoder B={images}", images, None, COCO_LEVELS, heads=8, channels=32, points=4)


def _decoder(images: int) -> AttentionCase:
    return AttentionCase(f"decoder B={images}", images, 300, COCO_LEVELS, heads=8, channels=32, points=4)


def _mask2former(images: int) -> AttentionCase:
    levels = ((32, 32), (64, 64), (128, 128))
    return AttentionCase(f"Mask2Former B={images}", images, None, levels, heads=8, channels=32, points=4)


CASES = (
    _encoder(2),
    _decoder(2),
    _mask2former(1),
    AttentionCase("RF-DETR B=1", 1, 300, ((40, 40),), heads=16, channels=16, points=2),
    _encoder(16),
    _decoder(16),
    _mask2former(8),
)
JOBS = (
    *(Job(case, precision, form) for case in CASES for precision in (BF16, FP32) for form in (PLAIN, FUSED)),
    Job(CASES[0], ALL_BF16, PLAIN),
    *(Job(case, precision, PLAIN, compiled=True) for case in CASES[:2] for precision in (FP32, BF16)),
)


def cast(inputs: AttentionInputs, precision: Precision) -> AttentionInputs:
    """Float32 inputs rounded to a precision; no sample comes to lie where float32 cannot tell its pixel."""
    extent = torch.tensor([(w, h) for h, w in inputs.shapes], device=inputs.value.device)[:, None]
    offsets, locations = inputs.offsets, inputs.locations
    if precision.offsets != torch.float32:
        offsets = offsets.to(precision.offsets)
        pixels = inputs.reference_points.double()[:, :, None, :, None] * extent + offsets.double() - 0.5
        offsets = torch.where((pixels - pixels.round()).abs() < 0.01, offsets + 0.0625, offsets)
    if precision.locations != torch.float32:
        # narrow locations often lie on a pixel exactly, which all agree on, but for one pixel outside
        locations = locations.to(precision.locations)
        locations = torch.where(locations.double() * extent == -0.5, locations / 2, locations)
    return replace(
        inputs,
        value=inputs.value.to(precision.value),
        grad_output=inputs.grad_output.to(precision.value),
        locations=locations,
        weights=inputs.weights.to(precision.locations),
        offsets=offsets,
        logits=inputs.logits.to(precision.offsets),
    )


def used_tensors(inputs: AttentionInputs, form: str) -> dict[str, Tensor]:
    """What one call of a form reads, forward and backward."""
    names = (*ARGUMENTS[form], "grad_output", *(("reference_points",) if form == FUSED else ()))
    return {name: getattr(inputs, name) for name in names}


def rotation(inputs: AttentionInputs, form: str, cache_bytes: int) -> list[AttentionInputs]:
    """The inputs and copies to rotate among, so that no call finds its own in a cache of that size.

    Together they hold three times the cache; a call that alone moves eight times as much needs no copy.
    """
    tensors = used_tensors(inputs, form)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size >= 8 * cache_bytes:
        return [inputs]
    count = min(96, max(2, math.ceil(3 * cache_bytes / size)))
    copies: list[AttentionInputs] = []
    while len(copies) < count - 1:
        clones: dict[str, Any] = {name: tensor.clone() for name, tensor in tensors.items()}
        copies.append(replace(inputs, **clones))
    return [inputs, *copies]
