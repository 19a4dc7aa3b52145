"""What is special to point sampling: grid_sample, borders, non-finite numbers, strides, large maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from detr_fast.ops import point_sample
from detr_fast.ops.point_sample import OPERATOR
from detr_fast.ops.point_sample.arguments import Rows
from tests.ops.cases.point_sample import SHAPES, edges
from tests.ops.simulated import labels, simulated

backends = pytest.mark.parametrize("backend", ["cpu", *labels(OPERATOR)], indirect=True)


def with_gradient(maps: Tensor, points: Tensor, grad_out: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().clone().requires_grad_()
    out = point_sample(leaf, points, backend=backend)
    return out.detach(), torch.autograd.grad(out, leaf, grad_out)[0]


def assert_same_finite_part(actual: Tensor, expected: Tensor, what: str) -> None:
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), what
    torch.testing.assert_close(actual[finite].double(), expected[finite], rtol=1e-5, atol=1e-5, msg=what)


def test_reference_is_grid_sample(rng: torch.Generator) -> None:
    given = SHAPES["rows_and_sets"](rng)
    maps, points = given["maps"][given["map_index"]], given["points"][given["point_index"]]
    expected = grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    actual = point_sample(**given, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["shared_points", "edges"])
def test_reference_differentiates_twice(name: str, rng: torch.Generator) -> None:
    """By the maps, of which the result is a linear function: on knots too."""
    given = SHAPES[name](rng)
    maps, points = given["maps"][:2, :1, :4, :5].requires_grad_(), given["points"][:, ::7]

    def function(maps: Tensor) -> Tensor:
        return point_sample(maps, points, backend="reference")

    assert torch.autograd.gradcheck(function, maps)
    assert torch.autograd.gradgradcheck(function, maps)


@backends
def test_every_backend_differentiates_twice(backend: str, rng: torch.Generator) -> None:
    maps, points = torch.randn(2, 1, 5, 6, generator=rng), torch.rand(2, 7, 2, generator=rng)
    leaf = maps.requires_grad_()
    out = point_sample(leaf, points, backend=backend)
    (first,) = torch.autograd.grad((out**3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    wide = maps.detach().double().requires_grad_()
    out = point_sample(wide, points, backend="reference")
    (first,) = torch.autograd.grad((out**3).sum(), wide, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), wide)
    torch.testing.assert_close(second.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rows_and_sets", "own_points", "one_row", "edges"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.uint8], ids=str
)
def test_every_instruction_set(isa: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    kind = torch.float64 if dtype.is_floating_point else dtype
    given = SHAPES[name](rng, kind=kind)
    maps = given.pop("maps").to(dtype)
    given["points"] = given["points"].float()
    expected = point_sample(maps.double(), **given, backend="reference")
    assert_close = torch.testing.assert_close
    tolerance = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.uint8: 1e-3}.get(dtype, 2e-5)
    assert_close(point_sample(maps, **given).double(), expected, rtol=tolerance, atol=tolerance)
    if dtype.is_floating_point:
        grad_out = torch.randn(expected.shape, generator=rng).to(dtype)
        leaf, wide = maps.clone().requires_grad_(), maps.double().requires_grad_()
        (actual,) = torch.autograd.grad(point_sample(leaf, **given), leaf, grad_out)
        out = point_sample(wide, **given, backend="reference")
        (wanted,) = torch.autograd.grad(out, wide, grad_out.double())
        assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


@backends
def test_edges_corners_outside_and_nan(backend: str, rng: torch.Generator) -> None:
    maps = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    points = [
        *[(0.25, 0.25), (0.75, 0.75), (0.5, 0.5)],  # pixel centres, the middle
        *[(0.0, 0.0), (1.0, 1.0), (0.0, 0.5)],  # a corner is blended with three zeros, an edge with one
        *[(-0.25, 0.5), (1.25, 0.5), (0.5, 7.0)],  # half a pixel outside and further
        *[(math.nan, 0.5), (0.5, math.nan), (math.inf, 0.5), (0.5, -math.inf)],
    ]
    out = point_sample(maps, torch.tensor([points]), backend=backend)[0, 0]
    expected = [1.0, 4.0, 2.5, 0.25, 1.0, 1.0, *[0.0] * 7]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=0)


@backends
def test_what_is_not_finite_stays_where_it_belongs(backend: str, rng: torch.Generator) -> None:
    given = edges(rng)  # a map's sides are powers of two: pixel coordinates are exact
    maps, points = given["maps"].float(), given["points"].float()
    maps[:, :, 0, 0], maps[:, :, 3, 2], maps[:, 1, 1, 7] = math.nan, math.inf, -math.inf
    grad_out = torch.randn(2, 2, points.shape[1], generator=rng)
    grad_out[0, 0, ::9], grad_out[1, 1, 1::11] = math.nan, math.inf
    actual = with_gradient(maps, points, grad_out, backend)
    expected = with_gradient(maps.double(), points, grad_out.double(), "reference")
    for a, e, what in zip(actual, expected, ("out", "grad_maps"), strict=True):
        assert_same_finite_part(a, e, what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
@backends
def test_parts_of_maps_are_read_in_place(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Rows and channels cut out of larger maps, and planes in another order."""
    whole = torch.randn(3, 4, 12, 16, generator=rng) > 0
    whole = whole if dtype == torch.bool else torch.randn(3, 4, 12, 16, generator=rng)
    part = whole.transpose(0, 1)[1:, :, 2:9, 3:13]
    points = torch.rand(3, 31, 2, generator=rng)
    expected = point_sample(part.contiguous(), points, backend=backend)
    torch.testing.assert_close(point_sample(part, points, backend=backend), expected, rtol=0, atol=0)
    turned = part.mT
    expected = point_sample(turned.contiguous(), points, backend=backend)
    torch.testing.assert_close(point_sample(turned, points, backend=backend), expected, rtol=0, atol=0)


def test_offsets_beyond_32_bits(rng: torch.Generator) -> None:
    """Maps 2**32 apart, of which only the touched pages exist."""
    row = torch.randint(2, (3, 70000), generator=rng, dtype=torch.uint8)
    maps = torch.empty(2**32 + 3 * 70000, dtype=torch.uint8)
    maps = maps.as_strided((2, 1, 3, 70000), (2**32, 2**32, 70000, 1))
    maps[:, 0] = row
    points = torch.rand(2, 100, 2, generator=rng)
    expected = point_sample(row[None, None], points[1:])
    torch.testing.assert_close(point_sample(maps, points)[1:], expected, rtol=0, atol=0)


def test_rows_far_apart(rng: torch.Generator) -> None:
    rows = torch.randn(3, 5, generator=rng)
    maps = torch.empty(2**31 + 5, dtype=torch.float16).as_strided((1, 1, 3, 5), (1, 1, 2**30, 1))
    maps[0, 0] = rows
    points = torch.rand(1, 50, 2, generator=rng)
    expected = point_sample(rows.half()[None, None], points)
    torch.testing.assert_close(point_sample(maps, points), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("simulation", labels(OPERATOR))
def test_an_index_out_of_range_on_a_gpu_gives_nan_and_no_gradient(
    simulation: str, rng: torch.Generator
) -> None:
    with simulated(OPERATOR, simulation) as name:
        kernels = OPERATOR.backends[name].implementation
    maps, points = torch.randn(3, 2, 4, 5, generator=rng), torch.rand(2, 6, 2, generator=rng)
    map_index, point_index = torch.tensor([2, 3, -1, 0, 1]), torch.tensor([0, 1, 0, 2, 1])
    bad = torch.tensor([False, True, True, True, False])
    out = kernels.forward(maps, Rows(points, map_index, point_index))
    assert torch.equal(out.isnan().all(2).all(1), bad)
    assert torch.equal(out.isnan().any(2).any(1), bad)
    grad_out = torch.randn(out.shape, generator=rng)
    grad = kernels.backward(grad_out, maps.shape, Rows(points, map_index, point_index))
    good = (grad_out[~bad], maps.shape, Rows(points, map_index[~bad], point_index[~bad]))
    torch.testing.assert_close(grad, kernels.backward(*good), rtol=1e-6, atol=1e-6)


def test_triton_says_why_not() -> None:
    on_cpu = OPERATOR.explain(torch.device("cpu"), torch.bool)["triton"]
    assert "runs on a CUDA device, not on cpu" in str(on_cpu)
    wide = OPERATOR.explain(torch.device("cuda"), torch.float64)["triton"]
    assert "too coarse for torch.float64" in str(wide)
