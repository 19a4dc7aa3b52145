"""point_sample: shared and own points, gathered rows, every kind of map, borders, empty batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops import point_sample
from detr_fast.ops.point_sample import OPERATOR
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance


def make(
    rng: torch.Generator,
    maps: tuple[int, int, int, int],
    points: int,
    rows: int | None = None,
    sets: int | None = None,
    kind: torch.dtype = torch.float64,
    spread: float = 1.2,
) -> Inputs:
    """Maps [M, C, h, w] and points of which some lie outside.

    rows: of a `map_index`, None: no such index. sets: point sets chosen by a `point_index`, None: one a row.
    """
    values = torch.randn(maps, generator=rng, dtype=torch.float64)
    count = maps[0] if rows is None else rows
    if kind == torch.bool:
        values = values > 0
    elif kind == torch.uint8:
        values = torch.randint(256, maps, generator=rng, dtype=torch.uint8)
    location = torch.rand(count if sets is None else sets, points, 2, generator=rng, dtype=torch.float64)
    inputs: Inputs = {"maps": values, "points": 0.5 + spread * (location - 0.5)}
    if rows is not None:
        inputs["map_index"] = torch.randint(max(1, maps[0]), (rows,), generator=rng)
    if sets is not None:
        inputs["point_index"] = torch.randint(sets, (count,), generator=rng)
    return inputs


def edges(rng: torch.Generator, **options: Any) -> Inputs:
    """Every pixel centre, boundary and corner, half a pixel around, far outside and NaN."""
    inputs = make(rng, (2, 2, 4, 8), 1, **options)
    ticks = torch.tensor([-1e30, -0.5, -0.25, 0.0, 0.125, 0.5, 0.9375, 1.0, 1.25, 1.5, 1e30, torch.nan])
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).flatten(0, 1).double()
    return {**inputs, "points": grid.expand(2, -1, 2).contiguous()}


SHAPES: dict[str, Callable[..., Inputs]] = {
    "rows_and_sets": partial(make, maps=(6, 1, 17, 23), points=150, rows=11, sets=3),
    "own_points": partial(make, maps=(3, 2, 9, 13), points=40),
    "shared_points": partial(make, maps=(5, 3, 16, 16), points=129, sets=2),
    "gathered_maps": partial(make, maps=(7, 1, 12, 10), points=33, rows=4),
    "large": partial(make, maps=(2, 1, 31, 33), points=20000, rows=3, sets=1),
    "one_point": partial(make, maps=(3, 40, 5, 5), points=1),
    "one_pixel": partial(make, maps=(2, 2, 1, 1), points=19, spread=3.0),
    "one_row": partial(make, maps=(2, 1, 1, 21), points=50),
    "one_column": partial(make, maps=(2, 1, 21, 1), points=50),
    "far_outside": partial(make, maps=(2, 2, 6, 5), points=70, spread=40.0),
    "edges": edges,
    "no_rows": partial(make, maps=(3, 2, 4, 4), points=5, rows=0, sets=2),
    "no_points": partial(make, maps=(3, 2, 4, 4), points=0),
    "no_channels": partial(make, maps=(3, 0, 4, 4), points=5),
    "no_maps": partial(make, maps=(0, 2, 4, 4), points=5, rows=0, sets=2),
}


def with_(**changes: Callable[[Any], Any]) -> Callable[[Inputs], Inputs]:
    """Replaces arguments by `changes[name](old)`."""
    return lambda inputs: {k: changes[k](v) if k in changes else v for k, v in inputs.items()}


def number(value: int) -> Callable[[Tensor], Tensor]:
    def change(index: Tensor) -> Tensor:
        return torch.where(torch.arange(len(index)) == 2, value, index)

    return change


BAD_INPUTS = [
    BadInput("maps_3d", with_(maps=lambda m: m[0]), ValueError, r"maps: expected \[M, C, h, w\]"),
    BadInput("maps_flat", with_(maps=lambda m: m[:, :, :0]), ValueError, "maps: .* h and w from 1"),
    BadInput("maps_long", with_(maps=lambda m: m.long()), TypeError, "maps: .*int64"),
    BadInput("maps_list", with_(maps=lambda m: m.tolist()), TypeError, "maps: expected a tensor; got list"),
    BadInput("points_2d", with_(points=lambda p: p[0]), ValueError, r"points: expected \[G, P, 2\]"),
    BadInput("points_3_numbers", with_(points=lambda p: p[..., [0, 1, 1]]), ValueError, "points: expected"),
    BadInput("points_long", with_(points=lambda p: p.long()), TypeError, "points: .*int64"),
    BadInput("points_leaf", with_(points=lambda p: p.requires_grad_()), ValueError, "points: no gradient"),
    BadInput("points_meta", with_(points=lambda p: p.to("meta")), ValueError, "points: .*cpu.*meta"),
    BadInput("index_int32", with_(map_index=lambda i: i.int()), TypeError, "map_index: .*int32"),
    BadInput("index_2d", with_(point_index=lambda i: i[None]), ValueError, r"point_index: expected \[R\]"),
    BadInput("index_M", with_(map_index=number(6)), ValueError, "map_index: .*M = 6; got 6 at row 2"),
    BadInput("index_negative", with_(map_index=number(-1)), ValueError, "map_index: .*got -1 at row 2"),
    BadInput("index_G", with_(point_index=number(3)), ValueError, "point_index: .*G = 3; got 3 at row 2"),
    BadInput("no_sets", with_(points=lambda p: p[:0]), ValueError, "point_index: .*G = 0"),
    BadInput("rows_differ", with_(map_index=lambda i: i[1:]), ValueError, "expected R = 10 rows.*got 11"),
    BadInput("sets_differ", with_(point_index=lambda i: None), ValueError, "expected R = 11 rows.*got 3"),
]

FLOAT = Contract(
    operator=OPERATOR,
    function=point_sample,
    cases=[Case(name, inputs) for name, inputs in SHAPES.items()],
    dtypes={
        torch.float32: Tolerance(forward=1e-5, backward=1e-5),
        torch.bfloat16: Tolerance(forward=8e-3, backward=8e-3),
        torch.float16: Tolerance(forward=1e-3, backward=1e-3),
    },
    cast=("maps",),
    differentiable=("maps",),
    gradient_modes=({"deterministic": True}, {"deterministic": False}),
    bad_inputs=BAD_INPUTS,
)
MASKS = Contract(
    operator=OPERATOR,
    function=point_sample,
    cases=[
        Case(f"{str(kind)[6:]}_{name}", partial(SHAPES[name], kind=kind))
        for kind in (torch.bool, torch.uint8)
        for name in ("rows_and_sets", "own_points", "one_pixel", "edges", "no_rows")
    ],
    dtypes=dict.fromkeys((torch.float32, torch.bfloat16), Tolerance(forward=1e-5)),  # of nothing: maps stay
    cast=(),
)
CONTRACTS = [FLOAT, MASKS]
