"""The compiled CPU backend: every dtype but float64, with float32 arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import cast, empty, run
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn

CHECKS_ARGUMENTS = True


def forward(call: DeformAttn) -> Tensor:
    """As `reference.forward`."""
    value = call.value
    batch, _, heads, channels = value.shape
    out = empty((batch, call.coordinates.shape[1], heads * channels), value)
    run(extension.extension().ms_deform_attn_cpu_fwd, *_inputs(call), out)
    return out


def backward(grad_out: Tensor, call: DeformAttn, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    The order of the sums is always the same, so `deterministic` changes nothing.
    """
    gradients = [
        empty(t.shape, t, t.dtype if t is call.value else torch.float32) if need and t is not None else None
        for t, need in zip(call[:4], needs, strict=True)
    ]
    parts = None if gradients[3] is None else call.reference_parts()
    function = extension.extension().ms_deform_attn_cpu_bwd
    run(function, *_inputs(call), cast(grad_out, call.value.dtype), *gradients, parts)
    return call.in_input_dtypes(gradients)


def _inputs(call: DeformAttn) -> tuple[Any, ...]:
    """What every function of the extension takes first."""
    value, coordinates, weights, reference_points, _, sides, points_per_level, _ = call
    return (
        sides,
        points_per_level,
        value,
        cast(coordinates, torch.float32),
        cast(weights, torch.float32),
        None if reference_points is None else cast(reference_points, torch.float32),
        torch.get_num_threads(),
    )
