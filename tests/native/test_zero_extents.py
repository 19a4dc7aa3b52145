"""An extent of zero gives what the reference gives: empty outputs, or zeros."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR
from tests.native.calls import EXTENTS, POISON, calls
from tests.ops.simulated import simulated


@pytest.mark.parametrize("zero", ["B", "Q", "H", "D", "P", "BQ", "DP", "QP"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "host"])
def test_deformable_attention(backend: str, dtype: torch.dtype, zero: str, rng: torch.Generator) -> None:
    b, q, h, d, p = (0 if letter in zero else 3 for letter in "BQHDP")
    levels = ((3, 4), (1, 2))

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        value = torch.ones(b, 14, h, d, dtype=dtype, requires_grad=True)
        references = torch.full((b, q, 2, 4), 0.5, requires_grad=True)
        offsets = torch.zeros(b, q, h, 2, p, 2, requires_grad=True)
        logits = torch.zeros(b, q, h, 2, p, requires_grad=True)
        inputs = (value, references, offsets, logits)
        out = ms_deform_attn_fused(value, levels, *inputs[1:], backend=backend)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    expected = run("reference", torch.float64)
    with simulated(OPERATOR, "host") if backend == "host" else nullcontext(backend) as pin:
        for actual, wanted in zip(run(pin, dtype), expected, strict=True):
            torch.testing.assert_close(actual, wanted, check_dtype=False)


@pytest.mark.parametrize("letter", sorted(EXTENTS))
def test_every_function_of_the_extension(letter: str) -> None:
    """None reads beyond its inputs or divides by zero, and every output is written."""
    for call in calls(**{letter: 0}).values():
        refused = call.run()
        if refused is not None and refused >= 0:  # a label where there are no classes
            continue
        if letter == "K" and call.function.startswith("class_loss_cuda"):  # the same, promised to be NaN
            continue
        for name in call.outputs:
            output = call.arguments[name]
            if call.function.startswith("ms_deform_attn_cuda_b"):  # whose caller clears what has no samples
                continue
            assert not (output == POISON).any(), f"{call.function}: {name}"
            assert not output.is_floating_point() or output.isfinite().all(), f"{call.function}: {name}"
