"""The CUDA kernels of multi-scale deformable attention on the host: what the contract leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.ops.ms_deform_attn.cuda import Cuda
from tests.ops.cases.ms_deform_attn import (
    Geometry,
    by_reference,
    grad_out_like,
    packed,
    packed_inputs,
    randn,
)
from tests.simt.build import simt_module

KERNELS = Cuda(simt_module)
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
NAMES = ("out", "value", "coordinates", "weights", "references")
ALL = (True, True, True, True)

LEVELS = ((5, 7), (3, 4))
GEOMETRIES = {
    "typical": Geometry(((9, 11), (5, 6), (3, 3), (2, 2)), queries=5, heads=2),
    "boxes": Geometry(((9, 11), (5, 6), (3, 3), (2, 2)), queries=5, heads=2, boxes=True),
    "d256": Geometry(LEVELS, queries=3, heads=1, channels=256, points=2),
    "d300": Geometry(LEVELS, batch=1, queries=2, heads=1, channels=300, points=2),
    "d16": Geometry(LEVELS, heads=2, channels=16, points=2, boxes=True),
    "d6": Geometry(LEVELS, queries=3, heads=2, channels=6, points=3),
    "d1": Geometry(LEVELS, heads=2, channels=1, points=3),
    "one_sample": Geometry(((4, 5),), heads=1, channels=8, points=1),
    "samples_36": Geometry(LEVELS, batch=1, queries=3, heads=2, points=18, boxes=True),
    "samples_200": Geometry(LEVELS, batch=1, queries=2, heads=1, channels=8, points=100),
    "samples_1800": Geometry(LEVELS, batch=1, queries=2, heads=1, channels=4, points=900, boxes=True),
    "levels_128": Geometry(((2, 3),) * 128, batch=1, queries=2, heads=1, channels=8, points=1, boxes=True),
    "queries_are_pixels": Geometry(((13, 9), (7, 5), (1, 3)), batch=2, queries=155, heads=2, channels=8),
    "far_outside": Geometry(LEVELS, queries=9, spread=20.0),
}


def actual_of(call: DeformAttn, grad_out: Tensor) -> list[Tensor | None]:
    gradients = KERNELS.backward(grad_out, call, ALL)
    return [KERNELS.forward(call), *(gradients[:3] if call.reference_points is None else gradients)]


def assert_close(
    actual: Sequence[Tensor | None],
    expected: Sequence[Tensor],
    tolerance: float,
    wanted: Sequence[bool] = ALL,
) -> None:
    for name, a, e, want in zip(NAMES, actual, expected, (True, *wanted), strict=False):
        assert (a is not None) == want, name
        if a is None:
            continue
        finite = e.isfinite()
        assert torch.equal(a.isfinite(), finite), name
        scale = e[finite].abs().max().clamp(min=1).item() if finite.any() else 1
        torch.testing.assert_close(
            a[finite].double(),
            e[finite].double(),
            rtol=tolerance,
            atol=tolerance * scale,
            msg=partial("{}: {}".format, name),
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_ms_deform_attn_host_matches_reference(
    name: str, fused: bool, dtype: torch.dtype, rng: torch.Generator
) -> None:
    inputs = packed_inputs(GEOMETRIES[name], rng, fused=fused, dtype=dtype)
    grad_out = grad_out_like(inputs, rng)
    assert_close(actual_of(inputs, grad_out), by_reference(inputs, grad_out), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_ms_deform_attn_host_narrow_coordinates(
    fused: bool, dtype: torch.dtype, rng: torch.Generator
) -> None:
    """Coordinates and weights in value's type are widened first: the same numbers, gradients rounded."""
    narrow = packed_inputs(GEOMETRIES["typical"], rng, fused=fused, dtype=dtype, fine=dtype)
    wide = narrow._replace(coordinates=narrow.coordinates.float(), weights=narrow.weights.float())
    grad_out = grad_out_like(narrow, rng)
    for name, a, e in zip(NAMES, actual_of(narrow, grad_out), actual_of(wide, grad_out), strict=False):
        exact = name != "value"  # summed in no fixed order
        assert a is not None, name
        assert e is not None, name
        torch.testing.assert_close(a, e.to(a.dtype), rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_ms_deform_attn_host_any_gradients(fused: bool, rng: torch.Generator) -> None:
    """Each subset of the gradients alone is what it is among all."""
    geometry = Geometry(LEVELS, batch=1, queries=3, heads=2, channels=8, points=3, boxes=True)
    inputs = packed_inputs(geometry, rng, fused=fused)
    grad_out = grad_out_like(inputs, rng)
    expected = by_reference(inputs, grad_out)[1:]
    for needs in itertools.product((False, True), repeat=4 if fused else 3):
        actual = KERNELS.backward(grad_out, inputs, (*needs, False)[:4])[: len(needs)]
        assert_close(
            [torch.zeros(()), *actual], [torch.zeros(()), *expected], TOLERANCE[torch.float32], wanted=needs
        )


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_ms_deform_attn_host_strange_coordinates(fused: bool, rng: torch.Generator) -> None:
    """Far outside, infinite or NaN: no part and no gradient; the rest is as if they were not there."""
    geometry = Geometry(LEVELS, batch=1, queries=8, heads=2, channels=8, points=3)
    inputs = packed_inputs(geometry, rng, fused=fused)
    strange = torch.tensor([1e10, -1e10, 1e30, -1e30, torch.inf, -torch.inf, torch.nan, 3e38])
    for axis in range(2):
        inputs.coordinates[0, :, axis, 1, 2, axis] = strange
    grad_out = grad_out_like(inputs, rng)
    assert_close(actual_of(inputs, grad_out), by_reference(inputs, grad_out), TOLERANCE[torch.float32])


def test_ms_deform_attn_host_corners_outside(rng: torch.Generator) -> None:
    """Inf and NaN reach exactly the samples that the reference says they reach."""
    levels = ((4, 8), (2, 4))  # powers of two: pixel coordinates are exact
    pixels = torch.cartesian_prod(
        torch.tensor([-1, -0.75, 0, 3.5, 7, 7.25]), torch.tensor([-1, -0.5, 1, 3, 3.75])
    )
    locations = ((pixels + 0.5) / torch.tensor([8, 4])).view(1, -1, 1, 1, 1, 2).expand(1, -1, 2, 2, 1, 2)
    weights = randn(rng, *locations.shape[:-1]).float()
    weights[0, ::4, 0] = 0
    value = randn(rng, 1, 40, 2, 8).float()
    value[0, [0, 7, 12, 31, 35], 0, 3] = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, torch.inf, torch.nan]
    )
    inputs = packed(value, levels, locations.contiguous(), weights)
    grad_out = grad_out_like(inputs, rng)
    assert_close(actual_of(inputs, grad_out), by_reference(inputs, grad_out), TOLERANCE[torch.float32])
    grad_out[0, 3:20:3, 5] = torch.inf
    assert_close(actual_of(inputs, grad_out), by_reference(inputs, grad_out), TOLERANCE[torch.float32])


def test_ms_deform_attn_host_too_many_levels(rng: torch.Generator) -> None:
    geometry = Geometry(((1, 1),) * 129, batch=1, queries=1, heads=1, channels=4, points=1)
    inputs = packed_inputs(geometry, rng, fused=False)
    with pytest.raises(ValueError, match="spatial_shapes: expected at most 128 levels"):
        KERNELS.forward(inputs)
