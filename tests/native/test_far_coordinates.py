"""Samples far outside a map read nothing, whatever their coordinates are and however small the map is."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused, point_sample
from detr_fast.ops.ms_deform_attn import OPERATOR
from tests.ops.simulated import simulated

LEVELS = ((1, 1), (1, 5), (5, 1), (3, 4))
FAR = (2.0, 2.0**24, 2.0**31, 2.0**32, 1e10, 2.0**63, 1e19, 9.99999e29, 1e30, 1.00001e30, 3e38)


def far_points() -> Tensor:
    """[points, 2]: x or y or both are far, on either side, infinite or NaN."""
    far = [sign * x for x in FAR for sign in (1, -1)] + [torch.inf, -torch.inf, torch.nan]
    return torch.tensor([point for x in far for point in ((x, 0.5), (0.5, x), (x, x))])


@pytest.mark.parametrize("backend", ["cpu", "host", "reference"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_deformable_attention_reads_nothing_far_outside(
    backend: str, fused: bool, rng: torch.Generator
) -> None:
    points = far_points()
    value = torch.randn(1, sum(h * w for h, w in LEVELS), 2, 8, generator=rng, requires_grad=True)
    shape = (1, len(points), 2, len(LEVELS), 1)
    coordinates = points[None, :, None, None, None].expand(*shape, 2).clone().requires_grad_()
    weights = torch.rand(shape, generator=rng).requires_grad_()
    with simulated(OPERATOR, "host") if backend == "host" else nullcontext(backend) as pin:
        if fused:  # an offset is in pixels, so the nearest ones lie within the larger levels
            coordinates = (8 * coordinates).detach().requires_grad_()
            references = torch.full((1, len(points), len(LEVELS), 2), 0.5, requires_grad=True)
            inputs = (value, references, coordinates, weights)
            out = ms_deform_attn_fused(value, LEVELS, references, coordinates, weights, backend=pin)
        else:
            inputs = (value, coordinates, weights)
            out = ms_deform_attn(value, LEVELS, coordinates, weights, backend=pin)
        gradients = torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=rng))
    assert (out == 0).all()
    for gradient in gradients:
        assert (gradient == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", LEVELS, ids=str)
def test_point_sample_reads_nothing_far_outside(
    backend: str, size: tuple[int, int], rng: torch.Generator
) -> None:
    maps = torch.randn(2, 3, *size, generator=rng, requires_grad=True)
    points = far_points().expand(2, -1, -1)
    out = point_sample(maps, points, backend=backend)
    (gradient,) = torch.autograd.grad(out, maps, torch.ones_like(out))
    assert (out == 0).all()
    assert (gradient == 0).all()
