"""What a call must move at least, and what that takes at the rates measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import AttentionInputs
from benchmarks.gpu.cases import ARGUMENTS, FUSED


@dataclass(frozen=True)
class Traffic:
    """Bytes of one pass.

    device: each input element that is needed read once and each output written once.
    gather: rows of value read from the caches, one for each corner inside its level; backward also adds
        a float32 row of gradient for each.
    """

    device: int
    gather: int


@dataclass(frozen=True)
class Touched:
    """corners: of all samples, those inside their level. rows: distinct rows [D] of value among them."""

    corners: int
    rows: int


def touched(inputs: AttentionInputs) -> Touched:
    """Counts what the locations of `inputs` reach."""
    B, S, H, _ = inputs.value.shape
    seen = torch.zeros(B * H * S, dtype=torch.bool, device=inputs.value.device)
    row_of_head = torch.arange(B * H, device=seen.device).view(B, 1, H, 1) * S
    corners, start = 0, 0
    for level, (height, width) in enumerate(inputs.shapes):
        locations = inputs.locations[:, :, :, level].float()
        left = (locations[..., 0] * width - 0.5).floor().long()
        top = (locations[..., 1] * height - 0.5).floor().long()
        for x in (left, left + 1):
            for y in (top, top + 1):
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                corners += int(inside.sum())
                seen[(row_of_head + start + y * width + x)[inside]] = True
        start += height * width
    return Touched(corners, int(seen.sum()))


def traffic(inputs: AttentionInputs, form: str, backward: bool, reached: Touched) -> Traffic:
    """Bytes of the forward or the backward pass of a form; backward gives the gradients of its ARGUMENTS."""
    element, channels = inputs.value.element_size(), inputs.value.shape[3]
    others = [getattr(inputs, name) for name in ARGUMENTS[form][1:]]
    read = reached.rows * channels * element + sum(map(_bytes, others))
    if form == FUSED:
        read += _bytes(inputs.reference_points)
    gather = reached.corners * channels * element
    if not backward:
        return Traffic(read + _bytes(inputs.grad_output), gather)  # the output is of grad_output's size
    written = _bytes(inputs.value) + sum(map(_bytes, others))
    return Traffic(read + _bytes(inputs.grad_output) + written, gather + reached.corners * channels * 4)


def microseconds(bytes_: int, bytes_per_s: float) -> float:
    """Time to move `bytes_` at a rate."""
    return 1e6 * bytes_ / bytes_per_s


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
