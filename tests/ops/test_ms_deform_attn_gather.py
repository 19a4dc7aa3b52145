"""The deterministic gradient of value, on CUDA: kernels that bin and gather, executed on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn import ordered
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.ops.ms_deform_attn.cuda import Cuda
from tests.ops.cases.ms_deform_attn import (
    FOUR_LEVELS,
    Geometry,
    by_reference,
    grad_out_like,
    packed_inputs,
)
from tests.simt.build import simt_module

KERNELS = Cuda(simt_module)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}

GEOMETRIES = {
    "four_levels": Geometry(FOUR_LEVELS, queries=20),
    "d20": Geometry(((7, 9), (4, 5)), heads=2, channels=20, points=3, queries=20, boxes=True),
    "d6": Geometry(((7, 9), (4, 5)), heads=2, channels=6, points=3, queries=20),
    "d256": Geometry(((3, 5), (1, 2)), heads=1, channels=256, queries=10, points=2),
    "d1": Geometry(((5, 7),), heads=3, channels=1, points=1, queries=70),
    "one_pixel_levels": Geometry(((1, 1), (1, 4), (5, 1), (1, 1)), heads=2, channels=8, queries=25),
    "far_outside": Geometry(FOUR_LEVELS, spread=5.0, queries=10, heads=2, channels=8),
}
# Most samples of each head lie in one cell, whose four pixels belong to four tiles: more than one warp sums.
CLUSTERED = Geometry(((6, 7),), batch=1, heads=1, channels=8, queries=320, points=4)


def clustered(rng: torch.Generator, dtype: torch.dtype, channels: int = 8) -> DeformAttn:
    """Nine samples of ten lie in the cell between the pixels (3, 3) and (4, 4)."""
    call = packed_inputs(replace(CLUSTERED, channels=channels), rng, fused=False, dtype=dtype)
    locations, ((height, width),) = call.coordinates, call.level_shapes
    near = (3.52 + 0.96 * torch.rand(locations.shape, generator=rng)) / torch.tensor([width, height])
    anywhere = torch.rand(call.weights.shape, generator=rng) < 0.1
    return call._replace(coordinates=torch.where(anywhere[..., None], locations, near))


def gathered(call: DeformAttn, grad_out: Tensor) -> Tensor:
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    grad_value = KERNELS.backward(grad_out, call._replace(deterministic=True), (True, False, False, False))[0]
    assert grad_value is not None
    return grad_value


def expected(call: DeformAttn, grad_out: Tensor) -> Tensor:
    return by_reference(call, grad_out)[1]


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert torch.equal(actual.isfinite(), wanted.isfinite())
    finite = wanted.isfinite()
    scale = wanted[finite].abs().max().clamp(min=1).item()
    torch.testing.assert_close(
        actual[finite].double(), wanted[finite], rtol=tolerance, atol=tolerance * scale
    )


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_ms_deform_attn_host_gather_matches_reference(name: str, fused: bool, rng: torch.Generator) -> None:
    call = packed_inputs(GEOMETRIES[name], rng, fused=fused)
    grad_out = grad_out_like(call, rng)
    assert_close(gathered(call, grad_out), expected(call, grad_out), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["d256", "d20", "one_pixel_levels"])
def test_ms_deform_attn_host_gather_16_bits(name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    call = packed_inputs(GEOMETRIES[name], rng, fused=False, dtype=dtype)
    grad_out = grad_out_like(call, rng)
    assert_close(gathered(call, grad_out), expected(call, grad_out), TOLERANCE[dtype])


@pytest.mark.parametrize("channels", [8, 3, 132])
def test_ms_deform_attn_host_gather_long_lists(channels: int, rng: torch.Generator) -> None:
    call = clustered(rng, torch.float32, channels)
    grad_out = grad_out_like(call, rng)
    assert_close(gathered(call, grad_out), expected(call, grad_out), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ms_deform_attn_host_gather_same_bits_in_any_block_order(
    dtype: torch.dtype, rng: torch.Generator
) -> None:
    call = clustered(rng, dtype)
    grad_out = grad_out_like(call, rng)
    results = []
    for seed in range(3):
        simt_module().set_seed(seed)
        results.append(gathered(call, grad_out))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_ms_deform_attn_host_gather_same_bits_image_by_image(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = packed_inputs(
        Geometry(((5, 6), (2, 3)), batch=3, heads=2, channels=8, queries=11), rng, fused=False
    )
    grad_out = grad_out_like(call, rng)
    at_once = gathered(call, grad_out)
    monkeypatch.setattr(ordered, "_SORTED_AT_ONCE", 1)
    assert torch.equal(gathered(call, grad_out), at_once)


def test_ms_deform_attn_host_gather_nothing_inside(rng: torch.Generator) -> None:
    near = packed_inputs(GEOMETRIES["one_pixel_levels"], rng, fused=False)
    for far in (-7.0, 7.0, 1e30, -torch.inf, torch.nan):
        call = near._replace(coordinates=torch.full_like(near.coordinates, far))
        assert not gathered(call, torch.full_like(grad_out_like(call, rng), torch.inf)).any()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_ms_deform_attn_host_gather_non_finite_where_the_reference_is(
    bad: float, rng: torch.Generator
) -> None:
    """A sample reaches its four pixels, even with share zero, and no other."""
    call = packed_inputs(Geometry(((4, 8), (3, 3)), heads=2, channels=8, queries=6), rng, fused=False)
    locations, weights = call.coordinates, call.weights
    locations[0, 2, 0, 0, 0] = torch.tensor([2.5 / 8, 1.5 / 4])  # the pixel (2, 1) itself, exactly
    grad_out = grad_out_like(call, rng)
    grad_out[0, 2, :9] = bad
    weights[1, 3, 1, 0, 1] = bad
    locations[1, 4, 0, 1, 1, 0] = bad
    wanted = expected(call, grad_out)
    assert 0 < wanted.isfinite().sum() < wanted.numel()
    assert_close(gathered(call, grad_out), wanted, TOLERANCE[torch.float32])
