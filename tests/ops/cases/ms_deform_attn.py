"""Cases of multi-scale deformable attention, plain and fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR, reference
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance


@dataclass(frozen=True)
class Geometry:
    """Letters as everywhere: B, Q, H, D, P and the (h, w) of each level.

    points: P, or that of each level.
    spread: how far samples lie from the centre of a level, in level sizes.
    """

    levels: tuple[tuple[int, int], ...]
    batch: int = 2
    queries: int = 10
    heads: int = 4
    channels: int = 32
    points: int | tuple[int, ...] = 4
    spread: float = 0.6
    shapes_as_tensor: bool = False
    boxes: bool = False

    def shapes(self) -> Any:
        return torch.tensor(self.levels) if self.shapes_as_tensor else [list(size) for size in self.levels]

    def value(self, rng: torch.Generator) -> Tensor:
        pixels = sum(h * w for h, w in self.levels)
        return randn(rng, self.batch, pixels, self.heads, self.channels)

    @property
    def points_per_level(self) -> tuple[int, ...] | None:
        return None if isinstance(self.points, int) else self.points

    @property
    def samples(self) -> tuple[int, ...]:
        """(N, P), or the sum of P."""
        return (len(self.levels), self.points) if isinstance(self.points, int) else (sum(self.points),)

    @property
    def level_points(self) -> Tensor:
        """[N] P of each level."""
        return torch.tensor(self.points).expand(len(self.levels))

    @property
    def width_height(self) -> Tensor:
        """[*samples, 2] the size of each sample's level."""
        return self.of_samples(torch.tensor([(w, h) for h, w in self.levels], dtype=torch.float64))

    def of_samples(self, of_levels: Tensor) -> Tensor:
        """[..., N, k] for levels as [..., *samples, k] for samples."""
        each = of_levels.repeat_interleave(self.level_points, -2)
        return each.unflatten(-2, self.samples)

    def locations(self, rng: torch.Generator) -> Tensor:
        """Random, each pixel coordinate at least 0.02 from an integer: there the gradient jumps."""
        shape = (self.batch, self.queries, self.heads, *self.samples, 2)
        size = self.width_height
        location = 0.5 + self.spread * (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1)
        pixel = location * size - 0.5
        fraction = 0.02 + 0.96 * (pixel - pixel.floor())
        return (pixel.floor() + fraction + 0.5) / size


def randn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def plain_inputs(geometry: Geometry, rng: torch.Generator) -> Inputs:
    locations = geometry.locations(rng)
    return {
        "value": geometry.value(rng),
        "spatial_shapes": geometry.shapes(),
        "sampling_locations": locations,
        "attention_weights": randn(rng, *locations.shape[:-1]),
        "points_per_level": geometry.points_per_level,
    }


def fused_inputs(geometry: Geometry, rng: torch.Generator) -> Inputs:
    """References and offsets whose locations are those of `Geometry.locations`."""
    locations = geometry.locations(rng)
    batch, queries, levels = geometry.batch, geometry.queries, len(geometry.levels)
    centre = torch.rand(batch, queries, levels, 2, generator=rng, dtype=torch.float64)
    if geometry.boxes:
        size = 0.1 + torch.rand(batch, queries, levels, 2, generator=rng, dtype=torch.float64)
        reference = torch.cat([centre, size], dim=-1)
        unit = size * 0.5 / geometry.level_points.clamp(min=1)[:, None]
        unit = geometry.of_samples(unit)[:, :, None]
    else:
        reference = centre
        unit = 1 / geometry.width_height
    logits = randn(rng, *locations.shape[:-1])
    return {
        "value": geometry.value(rng),
        "spatial_shapes": geometry.shapes(),
        "reference_points": reference,
        "sampling_offsets": (locations - geometry.of_samples(centre)[:, :, None]) / unit,
        "attention_logits": logits.flatten(3) if geometry.boxes else logits,
        "points_per_level": geometry.points_per_level,
    }


def packed(
    value: Tensor,
    levels: Sequence[Sequence[int]],
    coordinates: Tensor,
    weights: Tensor,
    references: Tensor | None = None,
    points_per_level: Sequence[int] | None = None,
    *,
    deterministic: bool = False,
) -> DeformAttn:
    """The arguments as a backend takes them."""
    sides = tuple(side for level in levels for side in level)
    tensors = (value, coordinates, weights.view(coordinates.shape[:-1]), references)
    return DeformAttn(*tensors, None, sides, points_per_level, deterministic)


def packed_inputs(
    geometry: Geometry,
    rng: torch.Generator,
    *,
    fused: bool,
    dtype: torch.dtype = torch.float32,
    fine: torch.dtype = torch.float32,
) -> DeformAttn:
    """Random arguments: value in `dtype`, coordinates and weights in `fine`, references in float32."""
    given = (fused_inputs if fused else plain_inputs)(geometry, rng)
    coordinates = given["sampling_offsets" if fused else "sampling_locations"].to(fine)
    weights = given["attention_logits" if fused else "attention_weights"].to(fine)
    references = given["reference_points"].float() if fused else None
    value, points = given["value"].to(dtype), geometry.points_per_level
    return packed(value, geometry.levels, coordinates, weights, references, points)


def grad_out_like(call: DeformAttn, rng: torch.Generator) -> Tensor:
    batch, _, heads, channels = call.value.shape
    return randn(rng, batch, call.coordinates.shape[1], heads * channels).to(call.value.dtype)


def by_reference(call: DeformAttn, grad_out: Tensor) -> list[Tensor]:
    """Output and gradients by the float64 reference."""
    leaves = [t.double().requires_grad_() for t in call[:4] if t is not None]
    out = reference.forward(DeformAttn._make([*leaves, *call[len(leaves) :]]))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.double())]


FOUR_LEVELS = ((12, 15), (6, 8), (3, 4), (2, 2))
GEOMETRIES = {
    "typical": Geometry(FOUR_LEVELS),
    "shapes_tensor_4d": Geometry(FOUR_LEVELS, shapes_as_tensor=True, boxes=True),
    "rf_detr": Geometry(((10, 10),), heads=16, channels=16, points=2, queries=20),
    "many_queries": Geometry(((8, 9), (4, 5)), batch=1, queries=150, heads=3, boxes=True),
    "few_queries": Geometry(((20, 21), (10, 11)), queries=2, heads=8),
    "odd_d1": Geometry(((5, 7), (3, 3)), heads=1, channels=1, points=1, queries=40),
    "odd_d3_n5": Geometry(
        ((7, 6), (6, 5), (4, 4), (2, 3), (1, 2)), heads=3, channels=3, points=3, boxes=True
    ),
    "d20": Geometry(((7, 9), (4, 5)), channels=20, points=3, queries=30),
    "d40": Geometry(((7, 9), (4, 5)), channels=40, points=1, queries=30),
    "d72": Geometry(((7, 9),), channels=72, heads=2, points=5, queries=3),
    "tiny_levels": Geometry(((1, 1), (1, 4), (5, 1)), channels=8, queries=25),
    "far_outside": Geometry(FOUR_LEVELS, spread=5.0, queries=30, channels=16),
    "ragged": Geometry(FOUR_LEVELS, points=(3, 6, 1, 2), batch=1, queries=150, heads=3),
    "ragged_boxes": Geometry(
        ((7, 9), (4, 5), (2, 3), (2, 2)), points=(0, 5, 2, 0), queries=3, channels=20, boxes=True
    ),
    "empty_queries": Geometry(FOUR_LEVELS, queries=0),
    "empty_batch": Geometry(FOUR_LEVELS, batch=0, boxes=True),
}


def _with(**changes: Any) -> Any:
    """A change that replaces arguments by `changes[name](old)`."""
    return lambda inputs: {k: changes[k](v) if k in changes else v for k, v in inputs.items()}


def _bad_inputs(coordinates: str, weights: str) -> list[BadInput]:
    return [
        BadInput("value_3d", _with(value=lambda v: v[0]), ValueError, r"value: expected \[B, S, H, D\]"),
        BadInput("value_int", _with(value=lambda v: v.long()), TypeError, "value: expected float32"),
        BadInput("value_list", _with(value=lambda v: v.tolist()), TypeError, "value: expected a tensor"),
        BadInput("too_few_pixels", _with(value=lambda v: v[:, 1:]), ValueError, "value: expected .* S = "),
        BadInput(
            "shapes_float",
            _with(spatial_shapes=lambda s: torch.tensor(s).float()),
            TypeError,
            "spatial_shapes: ",
        ),
        BadInput(
            "shapes_flat", _with(spatial_shapes=lambda s: s[0]), ValueError, r"spatial_shapes: .*\[N, 2\]"
        ),
        BadInput(
            "shapes_negative",
            _with(spatial_shapes=lambda s: [[-1, -2]]),
            ValueError,
            "spatial_shapes: .* sides",
        ),
        BadInput(
            "shapes_huge",
            _with(spatial_shapes=lambda s: [[2**40, 2**40]]),
            ValueError,
            "spatial_shapes: .* sides",
        ),
        BadInput(
            "one_level_less", _with(spatial_shapes=lambda s: s[1:]), ValueError, "value: expected .* S = "
        ),
        BadInput(
            "no_levels", _with(spatial_shapes=lambda s: []), ValueError, "spatial_shapes: .* at least one"
        ),
        BadInput(
            "heads_differ",
            _with(**{coordinates: lambda c: c[:, :, 1:]}),
            ValueError,
            rf"{coordinates}: expected \[B, Q, H, N, P, 2\]",
        ),
        BadInput(
            "points_differ",
            _with(**{weights: lambda w: w[..., 1:]}),
            ValueError,
            rf"{weights}: expected \[B, Q, H",
        ),
        BadInput(
            "coordinates_int",
            _with(**{coordinates: lambda c: c.long()}),
            TypeError,
            f"{coordinates}: expected float",
        ),
        BadInput(
            "meta_weights",
            _with(**{weights: lambda w: w.to("meta")}),
            ValueError,
            f"{weights}: .* device cpu",
        ),
    ]


DTYPES = {
    torch.float32: Tolerance(forward=1e-5, backward=5e-5),
    torch.bfloat16: Tolerance(forward=8e-3, backward=8e-3),
    torch.float16: Tolerance(forward=1e-3, backward=1e-3),
}


# GPU backends have a way of their own to gradients that are summed in a fixed order
GRADIENT_MODES = ({"deterministic": True}, {"deterministic": False})

CONTRACTS = [
    Contract(
        operator=OPERATOR,
        function=ms_deform_attn,
        cases=[Case(name, lambda rng, g=g: plain_inputs(g, rng)) for name, g in GEOMETRIES.items()],
        dtypes=DTYPES,
        cast=("value",),
        differentiable=("value", "sampling_locations", "attention_weights"),
        gradient_modes=GRADIENT_MODES,
        bad_inputs=_bad_inputs("sampling_locations", "attention_weights"),
    ),
    Contract(
        operator=OPERATOR,
        function=ms_deform_attn_fused,
        cases=[Case(name, lambda rng, g=g: fused_inputs(g, rng)) for name, g in GEOMETRIES.items()],
        dtypes=DTYPES,
        cast=("value",),
        differentiable=("value", "reference_points", "sampling_offsets", "attention_logits"),
        gradient_modes=GRADIENT_MODES,
        bad_inputs=[
            *_bad_inputs("sampling_offsets", "attention_logits"),
            BadInput(
                "reference_3d",
                _with(reference_points=lambda r: r[..., :1]),
                ValueError,
                r"reference_points: expected \[B, Q, N, 2\]",
            ),
            BadInput("no_reference", _with(reference_points=lambda r: None), TypeError, "reference_points: "),
        ],
    ),
]
