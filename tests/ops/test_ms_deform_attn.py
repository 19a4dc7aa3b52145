"""What is special to multi-scale deformable attention: knots, borders, non-finite numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from detr_fast.integrations.ms_deform_attn import MSDeformAttnFunction
from detr_fast.ops import ms_deform_attn, ms_deform_attn_classic, ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import cpu
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.ops.ms_deform_attn.checks import check
from tests.ops.cases.ms_deform_attn import (
    GEOMETRIES,
    Geometry,
    fused_inputs,
    packed_inputs,
    plain_inputs,
    randn,
)

SHAPES = ((4, 8), (2, 4))  # powers of two: pixel coordinates are exact in float32


def at_pixels(x: Tensor, y: Tensor) -> Tensor:
    """Locations [1, Q, 2, 2, 1, 2] at pixel coordinates (x, y) of the first level, in both levels."""
    location = torch.stack([(x + 0.5) / 8, (y + 0.5) / 4], dim=-1)
    return location[None, :, None, None, None].expand(1, -1, 2, 2, 1, 2).contiguous()


def call_with_gradients(
    value: Tensor, locations: Tensor, weights: Tensor, grad_out: Tensor, backend: str | None = None
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (value, locations, weights)]
    out = ms_deform_attn(leaves[0], SHAPES, leaves[1], leaves[2], backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def assert_matches_reference(inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    actual = call_with_gradients(*inputs)
    expected = call_with_gradients(*(t.double() for t in inputs), backend="reference")
    for name, a, e in zip(("out", "value", "locations", "weights"), actual, expected, strict=True):
        finite = e.isfinite()
        assert torch.equal(a.isfinite(), finite), name
        torch.testing.assert_close(a[finite].double(), e[finite], rtol=tolerance, atol=tolerance, msg=name)


def inputs_at(rng: torch.Generator, x: Tensor, y: Tensor, channels: int = 8) -> list[Tensor]:
    queries = x.numel()
    value = randn(rng, 1, 40, 2, channels).float()
    weights = randn(rng, 1, queries, 2, 2, 1).float()
    return [value, at_pixels(x, y).float(), weights, randn(rng, 1, queries, 2 * channels).float()]


def test_reference_is_grid_sample(rng: torch.Generator) -> None:
    given = plain_inputs(GEOMETRIES["typical"], rng)
    value, locations, weights = given["value"], given["sampling_locations"], given["attention_weights"]
    expected = 0
    for n, level in enumerate(value.split([h * w for h, w in given["spatial_shapes"]], dim=1)):
        height, width = given["spatial_shapes"][n]
        images = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        grid = 2 * locations[:, :, :, n].transpose(1, 2).flatten(0, 1) - 1
        sampled = grid_sample(images, grid, align_corners=False).unflatten(0, value.shape[::2][:2])
        expected = expected + torch.einsum("bhdqp,bqhp->bqhd", sampled, weights[:, :, :, n])
    actual = ms_deform_attn(**given, backend="reference")
    torch.testing.assert_close(actual, expected.flatten(2), rtol=1e-10, atol=1e-10)


def test_reference_differentiates_twice(rng: torch.Generator) -> None:
    given = fused_inputs(Geometry(((3, 4), (2, 2)), queries=2, heads=1, channels=2, points=2), rng)
    names = ("value", "reference_points", "sampling_offsets", "attention_logits")
    leaves = [given[name].requires_grad_() for name in names]

    def function(*tensors: Tensor) -> Tensor:
        return ms_deform_attn_fused(
            **{**given, **dict(zip(names, tensors, strict=True))}, backend="reference"
        )

    assert torch.autograd.gradcheck(function, leaves, eps=1e-7, atol=1e-4)
    assert torch.autograd.gradgradcheck(function, leaves, eps=1e-7, atol=1e-3)


def test_cpu_refuses_a_second_derivative(rng: torch.Generator) -> None:
    given = plain_inputs(GEOMETRIES["tiny_levels"], rng)
    given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
    given["value"].requires_grad_()
    out = ms_deform_attn(**given, backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), given["value"], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference' can"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "name", ["typical", "many_queries", "few_queries", "odd_d3_n5", "d20", "d72", "ragged", "ragged_boxes"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set(isa: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    given = fused_inputs(GEOMETRIES[name], rng)
    given["value"] = given["value"].to(dtype)
    names = [k for k, v in given.items() if isinstance(v, Tensor)]
    tolerance = {torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}[dtype]

    def run(wide: bool, backend: str) -> list[Tensor]:
        tensors = {k: given[k].double() if wide else given[k].to(torch.float32) for k in names}
        if not wide:
            tensors["value"] = given["value"]
        leaves = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
        out = ms_deform_attn_fused(**{**given, **leaves}, backend=backend)
        grads = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
        return [out.detach().double(), *(g.double() for g in grads)]

    for actual, expected in zip(run(False, "cpu"), run(True, "reference"), strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_every_16_bit_number_is_read_and_written(isa: str, dtype: torch.dtype, weight: float) -> None:
    value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    location, weights = torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.full((1, 1, 1, 1, 1), weight)
    out = ms_deform_attn(value.view(1, 1, 1, -1), ((1, 1),), location, weights, backend="cpu")
    torch.testing.assert_close(out[0, 0], (weight * value.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_knots_have_the_right_hand_derivative(isa: str, rng: torch.Generator) -> None:
    ticks = torch.tensor([-3.0, -1.5, -1.0, -0.5, 0.0, 1.0, 2.5, 3.0, 3.5, 6.5, 7.0, 7.5, 8.0, 8.5, 30.0])
    x, y = (t.flatten() for t in torch.meshgrid(ticks, ticks, indexing="ij"))
    assert_matches_reference(inputs_at(rng, x, y))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, -1e38, 2.0**31, -(2.0**31)])
def test_locations_far_beyond_contribute_nothing(isa: str, bad: float, rng: torch.Generator) -> None:
    x = torch.tensor([bad, 1.3, bad, 2.3])
    y = torch.tensor([1.3, bad, bad, 1.7])
    inputs = inputs_at(rng, x, y)
    out, by_value, by_locations, by_weights = call_with_gradients(*inputs)
    for result in (out, by_locations, by_weights):
        assert not result[:, :3].any()
        assert result[:, 3].all()
    assert by_value.isfinite().all()
    assert_matches_reference(inputs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("queries", [3, 400])
def test_pixels_that_are_not_read_do_not_leak(
    isa: str, bad: float, queries: int, rng: torch.Generator
) -> None:
    x = torch.tensor([-0.6, 7.4, 0.4]).repeat(queries // 3)
    y = torch.tensor([-0.6, 3.4, 3.4]).repeat(queries // 3)
    inputs = inputs_at(rng, x, y)
    # inside the clamped 2x2 windows of these samples, but beyond the pixels they touch
    value = inputs[0][:, :32].view(1, 4, 8, 2, 8)
    value[:, 1, :, 0] = bad
    value[:, 0, 1:, 0] = bad
    value[:, 2, :, 0] = bad
    value[:, 3, 6, 0] = bad
    out = ms_deform_attn(inputs[0], SHAPES, *inputs[1:3])
    assert out[:, : x.numel() - x.numel() % 3].isfinite().all()
    assert_matches_reference(inputs)


@pytest.mark.parametrize("queries", [4, 400])
def test_non_finite_gradients_and_weights_stay_where_they_belong(
    isa: str, queries: int, rng: torch.Generator
) -> None:
    x = 9 * torch.rand(queries, generator=rng) - 1
    y = 5 * torch.rand(queries, generator=rng) - 1
    inputs = inputs_at(rng, x, y, channels=16)
    inputs[3][0, 1, 3] = math.inf
    inputs[3][0, 2, 20] = math.nan
    inputs[2][0, 0, 0, 0] = math.nan
    inputs[2][0, 3, 1, 1] = math.inf
    assert_matches_reference(inputs, 1e-4)


def test_masked_logits_get_no_weight(isa: str, rng: torch.Generator) -> None:
    given = fused_inputs(Geometry(SHAPES, heads=2, channels=8, points=3), rng)
    given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
    given["attention_logits"][..., 1, :] = -math.inf
    given["value"][:, 32:] = 1e30
    assert ms_deform_attn_fused(**given).abs().max() < 1e3
    given["attention_logits"][0, 0, 0] = -math.inf
    expected = ms_deform_attn_fused(**given, backend="reference")
    torch.testing.assert_close(ms_deform_attn_fused(**given), expected, equal_nan=True)


def test_fused_is_the_composition(rng: torch.Generator) -> None:
    given = fused_inputs(GEOMETRIES["typical"], rng)
    given = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
    extent = torch.tensor([(w, h) for h, w in given["spatial_shapes"]])[:, None]
    reference = given["reference_points"][:, :, None, :, None]
    logits = given["attention_logits"]
    expected = ms_deform_attn(
        given["value"],
        given["spatial_shapes"],
        reference + given["sampling_offsets"] / extent,
        logits.flatten(3).softmax(-1).view_as(logits),
    )
    torch.testing.assert_close(ms_deform_attn_fused(**given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_fused])
def test_half_coordinates_are_used_in_float32(function: Any, rng: torch.Generator) -> None:
    make = plain_inputs if function is ms_deform_attn else fused_inputs
    given = make(GEOMETRIES["rf_detr"], rng)
    half = {k: v.to(torch.bfloat16) if isinstance(v, Tensor) else v for k, v in given.items()}
    leaves = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in half.items()}
    out = function(**leaves)
    out.sum().backward()
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in half.items()}
    expected = function(**wide, backend="reference")
    assert (out.double() - expected).abs().max() <= 8e-3 * expected.abs().max()
    for leaf in leaves.values():
        if isinstance(leaf, Tensor):
            assert leaf.grad is not None
            assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("points_per_level", [None, (2, 1)])
@pytest.mark.parametrize("fused", [False, True])
def test_the_extension_refuses_what_the_checks_refuse(
    points_per_level: tuple[int, ...] | None, fused: bool, rng: torch.Generator
) -> None:
    """So that an ordinary call asks the checks only for the words."""
    samples = (2, 3) if points_per_level is None else (3,)
    value, weights = randn(rng, 2, 40, 2, 4).float(), randn(rng, 2, 5, 2, *samples).float()
    coordinates, references = randn(rng, 2, 5, 2, *samples, 2).float(), randn(rng, 2, 5, 2, 4).float()
    sides = (4, 8, 2, 4)
    good = DeformAttn(
        value, coordinates, weights, references if fused else None, None, sides, points_per_level, None
    )
    check(good)
    expected = cpu.forward(good)
    tensors = [i for i, given in enumerate(good) if isinstance(given, Tensor)]
    bad: list[tuple[int, Any]] = [(5, (4, 8)), (5, (4, 8, 2, 5)), (5, (8, 4, 4, 2, 1, 1))]
    bad += [(6, (3,)), (6, (1, 1)), (6, (2, 2))]
    for i in tensors:
        given = good[i]
        bad += [(i, given.transpose(0, dim)) for dim in range(1, given.ndim)]
        bad += [(i, given.flatten(dim, dim + 1)) for dim in range(given.ndim - 1)]
        bad += [(i, given[:1]), (i, given[:, 1:]), (i, given[..., :1]), (i, given[..., None])]
        bad += [(i, given.long()), (i, given.to("meta")), (i, given.tolist())]
    refused = 0
    for i, wrong in bad:
        call = DeformAttn._make([*good[:i], wrong, *good[i + 1 :]])
        try:
            check(call)
        except (TypeError, ValueError):
            refused += 1
            with pytest.raises((AttributeError, IndexError, TypeError, ValueError)):
                cpu.forward(call)
    assert 4 * refused > 3 * len(bad)  # the others swap equal sizes or take fewer channels
    assert torch.equal(cpu.forward(good), expected)


def test_no_gradient_is_made_that_nobody_needs(rng: torch.Generator) -> None:
    call = packed_inputs(GEOMETRIES["typical"], rng, fused=False)
    grad_out = torch.ones(2, 10, 128)
    for needs in ((True, False, False, False), (False, True, False, False), (False, False, True, False)):
        gradients = cpu.backward(grad_out, call, needs)
        assert [gradient is not None for gradient in gradients] == list(needs)
    leaf = call.value.requires_grad_()
    with torch.no_grad():
        assert not ms_deform_attn(leaf, call.level_shapes, call.coordinates, call.weights).requires_grad


def test_shapes_as_tensor_list_and_classic_signature_agree(rng: torch.Generator) -> None:
    given = plain_inputs(GEOMETRIES["typical"], rng)
    value, locations, weights = (
        given[k].float() for k in ("value", "sampling_locations", "attention_weights")
    )
    shapes = torch.tensor(given["spatial_shapes"])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    expected = ms_deform_attn(value, given["spatial_shapes"], locations, weights)
    others = [
        ms_deform_attn(value, shapes, locations, weights),
        ms_deform_attn(value, shapes.int(), locations, weights),
        ms_deform_attn_classic(value, shapes, starts, locations, weights, 128),
        ms_deform_attn_classic(value, shapes, starts.tolist(), locations, weights),
        MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64),
    ]
    for other in others:
        torch.testing.assert_close(other, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="level_start_index: expected"):
        ms_deform_attn_classic(value, shapes, starts + 1, locations, weights)


def test_expanded_gradient_and_views(rng: torch.Generator) -> None:
    """What `out.sum()` and a slice of a larger projection give."""
    given = plain_inputs(GEOMETRIES["many_queries"], rng)
    wide = torch.cat([given["value"], given["value"]], dim=2).float()
    value = wide[:, :, : given["value"].shape[2]].requires_grad_()
    locations, weights = given["sampling_locations"].float(), given["attention_weights"].float()
    out = ms_deform_attn(value, given["spatial_shapes"], locations, weights)
    (actual,) = torch.autograd.grad(out.sum(), value)
    dense = value.detach().contiguous().requires_grad_()
    out = ms_deform_attn(dense, given["spatial_shapes"], locations, weights)
    (expected,) = torch.autograd.grad(out, dense, torch.ones_like(out))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


FUSED_NAMES = ("value", "reference_points", "sampling_offsets", "attention_logits")


def floats(given: dict[str, Any]) -> dict[str, Any]:
    return {name: x.float() if getattr(x, "dtype", None) == torch.float64 else x for name, x in given.items()}


def outputs_and_gradients(
    given: dict[str, Any], grad_out: Tensor | None = None, **changes: Any
) -> list[Tensor]:
    """Of the fused form: its result and the gradients of its tensors."""
    leaves = {name: given[name].detach().requires_grad_() for name in FUSED_NAMES}
    out = ms_deform_attn_fused(**{**given, **changes, **leaves})
    grad_out = torch.ones_like(out) if grad_out is None else grad_out
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad_out)]


def test_equal_numbers_of_points_are_the_common_layout(rng: torch.Generator) -> None:
    given = floats(fused_inputs(GEOMETRIES["typical"], rng))
    offsets, logits = given["sampling_offsets"], given["attention_logits"]
    ragged = {**given, "sampling_offsets": offsets.flatten(3, 4), "attention_logits": logits.flatten(3)}
    expected = outputs_and_gradients(given)
    actual = outputs_and_gradients(ragged, points_per_level=[4, 4, 4, 4])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.view(a.shape), rtol=0, atol=0)


def test_levels_without_points_are_levels_that_are_not_there(rng: torch.Generator) -> None:
    ragged = Geometry(((3, 4), (4, 5), (2, 2)), points=(0, 3, 0), heads=2, channels=8, boxes=True)
    given = floats(fused_inputs(ragged, rng))
    out, by_value, by_references, *others = outputs_and_gradients(given)
    middle = {
        **given,
        "value": given["value"][:, 12:32],
        "spatial_shapes": [[4, 5]],
        "reference_points": given["reference_points"][:, :, 1:2],
        "points_per_level": [3],
    }
    expected = outputs_and_gradients(middle)
    for a, e in zip([out, by_value[:, 12:32], by_references[:, :, 1:2], *others], expected, strict=True):
        torch.testing.assert_close(a, e)
    assert not by_value[:, :12].any()
    assert not by_value[:, 32:].any()
    assert not by_references[:, :, ::2].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_points_at_all_give_zeros(backend: str, rng: torch.Generator) -> None:
    given = floats(fused_inputs(Geometry(((3, 4), (4, 5)), points=(0, 0), boxes=True), rng))
    for result in outputs_and_gradients(given, backend=backend):
        assert not result.any()


def test_ragged_points_are_compiled_traced_and_transformed(rng: torch.Generator) -> None:
    given = floats(fused_inputs(GEOMETRIES["ragged_boxes"], rng))
    expected = outputs_and_gradients(given)
    torch.compiler.reset()
    compiled = torch.compile(ms_deform_attn_fused, fullgraph=True, backend="aot_eager")
    leaves = {name: given[name].detach().requires_grad_() for name in FUSED_NAMES}
    out = compiled(**{**given, **leaves})
    actual = [out.detach(), *torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))]
    tensors = [given[name] for name in FUSED_NAMES]

    def function(*some: Tensor) -> Tensor:
        return ms_deform_attn_fused(**{**given, **dict(zip(FUSED_NAMES, some, strict=True))})

    functional = torch.func.grad(lambda *some: function(*some).sum(), argnums=(0, 1, 2, 3))(*tensors)
    mapped = torch.func.vmap(function)(*(torch.stack([x, 2 * x]) for x in tensors))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    for a, e in zip(functional, expected[1:], strict=True):
        torch.testing.assert_close(a, e)
    torch.testing.assert_close(mapped[0], expected[0])
    torch.testing.assert_close(mapped[1], function(*(2 * x for x in tensors)))
    shapes = tuple(side for shape in given["spatial_shapes"] for side in shape)
    value, references, offsets, logits = (x.requires_grad_() for x in tensors)
    torch.library.opcheck(
        torch.ops.detr_fast.ms_deform_attn.default,
        (value, offsets, logits, references, None, shapes, given["points_per_level"], None, None),
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points_per_level": [3, 6, 1]}, ValueError, r"points_per_level: expected 4 numbers.*\[3, 6, 1\]"),
        ({"points_per_level": [3, 6, 1, 3]}, ValueError, r"sampling_locations: .*sum of P, 2\]"),
        ({"points_per_level": [3, 7, 3, -1]}, ValueError, "points_per_level: expected numbers of at least 0"),
        (
            {"points_per_level": [3, 6, 1.5, 2]},
            TypeError,
            "points_per_level: expected a sequence of integers",
        ),
        ({"points_per_level": 12}, TypeError, "points_per_level: expected a sequence of integers; got 12"),
        ({"points_per_level": None}, ValueError, r"sampling_locations: .* \(or points_per_level"),
        ({"attention_weights": torch.ones(1, 150, 3, 11)}, ValueError, r"attention_weights: .*sum of P\]"),
    ],
)
def test_ragged_errors(
    changes: dict[str, Any], error: type[Exception], message: str, rng: torch.Generator
) -> None:
    given = floats(plain_inputs(GEOMETRIES["ragged"], rng))
    with pytest.raises(error, match=message):
        ms_deform_attn(**{**given, **changes})


@pytest.mark.parametrize("name", ["shapes_tensor_4d", "typical", "ragged_boxes"])
def test_references_shared_by_all_levels(name: str, rng: torch.Generator) -> None:
    given = floats(fused_inputs(GEOMETRIES[name], rng))
    shared = given["reference_points"][:, :, :1]
    levels = given["reference_points"].shape[2]
    grad_out = torch.randn_like(ms_deform_attn_fused(**given))
    expected = outputs_and_gradients(
        {**given, "reference_points": shared.expand(-1, -1, levels, -1).contiguous()}, grad_out
    )
    expected[2] = expected[2].sum(2, keepdim=True)
    actual = outputs_and_gradients({**given, "reference_points": shared}, grad_out)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_offset_scale(rng: torch.Generator) -> None:
    boxes = fused_inputs(GEOMETRIES["ragged_boxes"], rng)
    points = torch.tensor(boxes["points_per_level"])
    levels = torch.arange(len(points)).repeat_interleave(points)
    references = boxes["reference_points"][:, :, levels][:, :, None]
    spans = boxes["sampling_offsets"] / points[levels][:, None] * references[..., 2:] * 0.3
    expected = ms_deform_attn(
        boxes["value"],
        boxes["spatial_shapes"],
        references[..., :2] + spans,
        boxes["attention_logits"].softmax(-1),
        points_per_level=boxes["points_per_level"],
    )
    torch.testing.assert_close(ms_deform_attn_fused(**boxes, offset_scale=0.3), expected)
    centres = fused_inputs(GEOMETRIES["typical"], rng)
    torch.testing.assert_close(
        ms_deform_attn_fused(**centres, offset_scale=0.3), ms_deform_attn_fused(**centres), rtol=0, atol=0
    )
