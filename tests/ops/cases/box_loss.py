"""box_loss: DETR num_targets, ragged and empty batches, boxes in pixels, degenerate and touching boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from detr_fast.ops import box_loss as function
from detr_fast.ops.box_loss import OPERATOR
from tests.ops.cases.class_loss import matching, query
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance
from tests.ops.packed import with_


def make(
    rng: torch.Generator, num_targets: tuple[int, ...], queries: int, layers: int, scale: float = 1.0
) -> Inputs:
    """Boxes as a sigmoid makes them; targets with num_targets from tiny to the whole image."""
    shape = (layers, len(num_targets), queries, 4)
    return {
        "boxes": scale * torch.randn(shape, generator=rng, dtype=torch.float64).sigmoid(),
        "target_boxes": scale * torch.rand(sum(num_targets), 4, generator=rng, dtype=torch.float64) ** 2,
        "query": matching(rng, num_targets, queries, layers),
        "num_targets": num_targets,
    }


def on_grid(rng: torch.Generator) -> Inputs:
    """Corners on multiples of 1/8, so that many meet exactly; zero sizes, identical boxes, far apart ones."""
    inputs = make(rng, (20, 12), 25, 2)
    for name in ("boxes", "target_boxes"):
        num_targets = torch.randint(0, 4, inputs[name][..., 2:].shape, generator=rng)
        places = torch.randint(0, 8, num_targets.shape, generator=rng)
        inputs[name] = torch.cat((places + num_targets / 2, num_targets), dim=-1).double() / 8
    found = inputs["query"][0, :5].clamp(min=0)
    inputs["boxes"][0, 0, found] = inputs["target_boxes"][:5]
    return inputs


def negative(rng: torch.Generator) -> Inputs:
    """Negative widths and heights; hulls stay away from zero, by which GIoU divides."""
    inputs = make(rng, (9, 6), 21, 2)
    inputs["target_boxes"][:, 2:] += 0.3
    inputs["boxes"][..., ::3, 2] *= -0.2
    inputs["boxes"][..., 1::4, 3] *= -0.2
    return inputs


SHAPES: dict[str, Callable[[torch.Generator], Inputs]] = {
    "layers_ragged": partial(make, num_targets=(7, 0, 13), queries=40, layers=3),
    "many_targets": partial(make, num_targets=(70, 3), queries=100, layers=1),
    "more_targets_than_queries": partial(make, num_targets=(40, 1), queries=6, layers=2),
    "one_query": partial(make, num_targets=(1, 3), queries=1, layers=6),
    "pixels": partial(make, num_targets=(5, 2), queries=19, layers=1, scale=1333.0),
    "on_grid": on_grid,
    "negative_sizes": negative,
    "no_targets": partial(make, num_targets=(0, 0), queries=5, layers=2),
    "no_images": partial(make, num_targets=(), queries=5, layers=2),
    "no_queries": partial(make, num_targets=(2, 1), queries=0, layers=2),
    "no_layers": partial(make, num_targets=(2, 1), queries=3, layers=0),
}


CONTRACTS = [
    Contract(
        operator=OPERATOR,
        function=function,
        cases=[Case(name, inputs) for name, inputs in SHAPES.items()],
        dtypes={
            torch.float32: Tolerance(forward=1e-6, backward=5e-6),
            # gradients are rounded to the dtype, by the interpreter towards zero
            torch.bfloat16: Tolerance(forward=1e-6, backward=8e-3),
            torch.float16: Tolerance(forward=1e-6, backward=1e-3),
        },
        cast=("boxes",),
        differentiable=("boxes",),
        bad_inputs=[
            BadInput("boxes_3d", with_(boxes=lambda x: x[0]), ValueError, r"boxes: expected \[L, B, Q"),
            BadInput(
                "boxes_5", with_(boxes=lambda x: x[..., [0, 1, 2, 3, 3]]), ValueError, "boxes: expected"
            ),
            BadInput("integer_boxes", with_(boxes=lambda x: x.int()), TypeError, "boxes: .*int32"),
            BadInput("targets_short", with_(target_boxes=lambda x: x[1:]), ValueError, "query: .*sumT"),
            BadInput("targets_3", with_(target_boxes=lambda x: x[:, :3]), ValueError, r"target_boxes: .*4\]"),
            BadInput(
                "targets_int", with_(target_boxes=lambda x: x.int()), TypeError, "target_boxes: .*int32"
            ),
            BadInput("query_Q", with_(query=query(40)), ValueError, r"query: .*\[-1, 40\); got 40"),
            BadInput("query_negative", with_(query=query(-2)), ValueError, "query: .*got -2"),
            BadInput("query_int32", with_(query=lambda x: x.int()), TypeError, "query: .*int32"),
            BadInput("sizes_sum", with_(num_targets=(7, 1, 13)), ValueError, "num_targets: .*sumT = 20"),
            BadInput(
                "sizes_length", with_(num_targets=(7, 13)), ValueError, "num_targets: .*B = 3 images; got 2"
            ),
            BadInput(
                "device", with_(target_boxes=lambda x: x.to("meta")), ValueError, "target_boxes: .*meta"
            ),
        ],
    )
]
