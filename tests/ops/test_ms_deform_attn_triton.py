"""Multi-scale deformable attention in Triton, interpreted: what the contract leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR, triton
from tests.ops import interpreter
from tests.ops.cases.ms_deform_attn import (
    Geometry,
    by_reference,
    fused_inputs,
    grad_out_like,
    packed_inputs,
)
from tests.ops.simulated import simulated
from tests.ops.test_ms_deform_attn import call_with_gradients, inputs_at

interpreted = pytest.mark.skipif(interpreter.why_not() is not None, reason=str(interpreter.why_not()))
LEVELS = ((5, 7), (3, 4))


@interpreted
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry(LEVELS, batch=1, queries=9, heads=2), id="typical"),
        pytest.param(Geometry(LEVELS, heads=1, channels=6, points=3, queries=5, boxes=True), id="d6"),
        pytest.param(Geometry(LEVELS, batch=1, queries=2, heads=1, points=18, boxes=True), id="36_samples"),
        pytest.param(Geometry(((2, 3),) * 9, batch=1, queries=3, heads=1, points=1), id="9_levels"),
        pytest.param(
            Geometry(LEVELS, batch=1, queries=2, heads=1, channels=256, points=2, spread=9), id="d256"
        ),
    ],
)
def test_ms_deform_attn_triton_with_tiles_of_a_gpu(
    geometry: Geometry, fused: bool, rng: torch.Generator
) -> None:
    interpreter.spare_patches()
    call = packed_inputs(geometry, rng, fused=fused)
    grad_out = grad_out_like(call, rng)
    out, *expected = by_reference(call, grad_out)
    needs = (True, True, True, fused)
    in_order = call._replace(deterministic=True)
    actual = [
        [triton.forward(call), *triton.backward(grad_out, call, needs)],
        triton.backward(grad_out, in_order, (True, False, False, False))[:1],
    ]
    for results, wanted in zip(actual, ((out, *expected), expected[:1]), strict=True):
        for a, e in zip(results, wanted, strict=False):
            torch.testing.assert_close(a, e.float(), rtol=0, atol=3e-5 * float(e.abs().max().clamp(min=1e-9)))


def _compare(inputs: list[Tensor]) -> None:
    """Triton beside the float64 reference, by their finite entries; value's gradient both ways."""
    expected = call_with_gradients(*(t.double() for t in inputs), backend="reference")
    with simulated(OPERATOR, "triton") as backend:
        actual = call_with_gradients(*inputs, backend=backend)
        torch.use_deterministic_algorithms(True)
        in_order = call_with_gradients(*inputs, backend=backend)
    for name, a, e in zip(
        ("out", "value", "locations", "weights", "value in order"),
        [*actual, in_order[1]],
        [*expected, expected[1]],
        strict=True,
    ):
        finite = e.isfinite()
        assert torch.equal(a.isfinite(), finite), name
        torch.testing.assert_close(a[finite].double(), e[finite], rtol=1e-4, atol=1e-4, msg=name)


@interpreted
def test_ms_deform_attn_triton_knots_and_far_locations(rng: torch.Generator) -> None:
    far = [math.nan, math.inf, -math.inf, 1e38, -1e38, 2.0**31]
    ticks = torch.tensor([-1.5, -1.0, -0.5, 0.0, 2.5, 3.0, 7.0, 7.5, 8.0, *far])
    x, y = (t.flatten() for t in torch.meshgrid(ticks, ticks, indexing="ij"))
    _compare(inputs_at(rng, x, y))


@interpreted
def test_ms_deform_attn_triton_keeps_what_is_not_finite_where_it_belongs(rng: torch.Generator) -> None:
    x, y = (size * torch.rand(40, generator=rng) - 1 for size in (9, 5))
    x[:3], y[:3] = torch.tensor([-0.6, 7.4, 0.4]), torch.tensor([-0.6, 3.4, 3.4])
    inputs = inputs_at(rng, x, y)
    value, _, weights, grad_out = inputs
    value[:, 9] = math.nan
    value[:, 20] = math.inf
    weights[0, 4, 0, 0] = math.nan
    weights[0, 5, 1, 1] = math.inf
    grad_out[0, 6, 3] = math.inf
    grad_out[0, 7, 12] = math.nan
    _compare(inputs)


@interpreted
def test_ms_deform_attn_triton_masked_logits(rng: torch.Generator) -> None:
    given = fused_inputs(Geometry(((4, 8), (2, 4)), batch=1, heads=2, channels=8, points=3), rng)
    given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
    given["attention_logits"][..., 1, :] = -math.inf
    given["attention_logits"][0, 0, 0] = -math.inf
    expected = ms_deform_attn_fused(**given, backend="reference")
    with simulated(OPERATOR, "triton") as backend:
        actual = ms_deform_attn_fused(**given, backend=backend)
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_ms_deform_attn_triton_tiles() -> None:
    for channels in (1, 3, 16, 20, 32, 64, 72, 256, 1024):
        for points, samples in ((1, 1), (2, 2), (4, 16), (3, 15), (6, 12), (900, 3600)):
            for rows in (1, 10**4, 10**7):
                for itemsize in (2, 4):
                    for backward in (False, True):
                        tile = triton.configuration(
                            rows, channels, points, samples, itemsize, backward=backward
                        )
                        assert all(n > 0 and n & (n - 1) == 0 for n in tile)
                        assert channels <= tile.block_d < 2 * channels
                        # Triton then keeps coordinates where they are used: fewer of them than lanes
                        assert tile.block_q * max(tile.block_p, tile.block_k) < 32 * tile.num_warps


def test_ms_deform_attn_triton_says_why_not() -> None:
    assert "runs on a CUDA device, not on cpu" in str(
        OPERATOR.explain(torch.device("cpu"), torch.float32)["triton"]
    )
    assert "too coarse for torch.float64" in str(
        OPERATOR.explain(torch.device("cuda"), torch.float64)["triton"]
    )
