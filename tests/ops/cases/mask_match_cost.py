"""mask_match_cost: ragged and empty batches, tiles that do not fill, sure masks, all kinds of targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from detr_fast.ops import mask_match_cost as function
from detr_fast.ops.mask_match_cost import OPERATOR
from tests.ops.contract import BadInput, Case, Contract, Inputs
from tests.ops.packed import bad_packing, costs_contract, with_


def make(
    rng: torch.Generator,
    num_targets: tuple[int, ...],
    queries: int,
    points: int,
    layers: int | None = None,
    classes: int = 7,
    scale: float = 3.0,
    targets: str = "per_layer",
    **options: Any,
) -> Inputs:
    """targets: "per_layer" and "shared" are of sampled points, in 0..1; "bool" and "uint8" of pixels."""
    lead = (len(num_targets), queries) if layers is None else (layers, len(num_targets), queries)
    own_points = layers is not None and targets == "per_layer"
    shape = (layers, sum(num_targets), points) if own_points else (sum(num_targets), points)
    values = (2 * torch.rand(*shape, generator=rng, dtype=torch.float64) - 0.5).clamp(0, 1)
    if targets in ("bool", "uint8"):
        values = (values > 0.5).to(getattr(torch, targets))
    return {
        "logits": scale * torch.randn(*lead, classes, generator=rng, dtype=torch.float64),
        "mask_values": scale * torch.randn(*lead, points, generator=rng, dtype=torch.float64),
        "target_labels": torch.randint(classes, (sum(num_targets),), generator=rng),
        "target_values": values,
        "num_targets": num_targets,
        **options,
    }


def sure(rng: torch.Generator, **options: Any) -> Inputs:
    """Logits of +-90 and 0; some queries are a target's mask exactly, some its complement."""
    inputs = make(rng, (5, 3), 21, 200, 2, targets="bool", **options)
    signs = torch.randint(-1, 2, inputs["mask_values"].shape, generator=rng)
    wanted = 2.0 * inputs["target_values"][:5].double() - 1
    masks = 90.0 * signs
    masks[:, 0, :5], masks[:, 0, 5:10] = 90 * wanted, -90 * wanted
    return {**inputs, "mask_values": masks}


def non_finite(rng: torch.Generator, **options: Any) -> Inputs:
    """NaN and infinite masks, targets and logits: whole rows and single points; image 2 has nothing else."""
    inputs = make(rng, (6, 2, 3, 1), 25, 70, 2, **options)
    masks, values, logits = inputs["mask_values"], inputs["target_values"], inputs["logits"]
    for i, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        masks[0, 0, 3 * i, 69], masks[1, 0, 3 * i + 1] = bad, bad
        logits[1, 1, 4 + i, 2] = bad
        values[0, i, 7 * i] = bad
    masks[:, 2] = torch.nan
    return inputs


def cases(**options: Any) -> list[Case]:
    shapes: dict[str, Callable[[torch.Generator], Inputs]] = {
        "layers_ragged": partial(make, num_targets=(7, 0, 13), queries=37, points=129, layers=3, classes=81),
        "one_layer": partial(make, num_targets=(3, 4), queries=30, points=50),
        "shared_targets": partial(
            make, num_targets=(3, 4), queries=20, points=64, layers=2, targets="shared"
        ),
        "bool_targets": partial(make, num_targets=(2, 5), queries=12, points=77, layers=2, targets="bool"),
        "uint8_targets": partial(make, num_targets=(1, 2), queries=9, points=31, targets="uint8"),
        "many_points": partial(make, num_targets=(4, 1), queries=5, points=2051, layers=1),
        "one_point": partial(make, num_targets=(2, 6), queries=11, points=1, layers=2),
        "one_class": partial(make, num_targets=(2,), queries=9, points=33, layers=1, classes=1),
        "many_classes": partial(make, num_targets=(4,), queries=3, points=20, layers=1, classes=1204),
        "one_query": partial(make, num_targets=(2, 3), queries=1, points=40, layers=4),
        "more_targets_than_queries": partial(make, num_targets=(70, 1), queries=5, points=45, layers=2),
        "large_logits": partial(make, num_targets=(4, 4), queries=20, points=90, layers=1, scale=60.0),
        "sure": sure,
        "non_finite": non_finite,
        "no_targets": partial(make, num_targets=(0, 0), queries=5, points=4, layers=2),
        "no_images": partial(make, num_targets=(), queries=5, points=4, layers=2),
        "no_queries": partial(make, num_targets=(2, 1), queries=0, points=4, layers=2),
        "no_layers": partial(make, num_targets=(2, 1), queries=3, points=4, layers=0),
    }
    return [
        Case(f"{options['mask_cost']}_{name}", partial(inputs, **options)) for name, inputs in shapes.items()
    ]


BAD_INPUTS = [
    *bad_packing("target_labels", 81),
    BadInput("logits_2d", with_(logits=lambda x: x[0, 0]), ValueError, r"logits: expected \[L, B, Q, K\]"),
    BadInput("masks_other_queries", with_(mask_values=lambda x: x[:, :, 1:]), ValueError, "mask_values: exp"),
    BadInput("masks_one_layer", with_(mask_values=lambda x: x[0]), ValueError, "mask_values: expected"),
    BadInput("no_points", with_(mask_values=lambda x: x[..., :0]), ValueError, "mask_values: .* X >= 1"),
    BadInput(
        "targets_short", with_(target_values=lambda x: x[:, 1:]), ValueError, "target_values: .*sumT, X"
    ),
    BadInput("targets_other_layers", with_(target_values=lambda x: x[1:]), ValueError, "or .*L, sumT, X"),
    BadInput("targets_other_points", with_(target_values=lambda x: x[..., 1:]), ValueError, "target_values:"),
    BadInput("integer_masks", with_(mask_values=lambda x: x.int()), TypeError, "mask_values: .*int32"),
    BadInput("integer_targets", with_(target_values=lambda x: x.int()), TypeError, "target_values: .*int32"),
    BadInput("device", with_(mask_values=lambda x: x.to("meta")), ValueError, "mask_values: .*cpu.*meta"),
    BadInput("mask_cost", with_(mask_cost="dice"), ValueError, "mask_cost: .*'dice'"),
    BadInput("weight_nan", with_(w_mask=float("nan")), ValueError, "w_mask"),
    BadInput("gamma_negative", with_(gamma=-1.0), ValueError, "gamma >= 0"),
]


def contract(cast: tuple[str, ...], **options: Any) -> Contract:
    return costs_contract(OPERATOR, function, cases(**options), cast, BAD_INPUTS)


MASK2FORMER = {"w_class": 2.0, "w_mask": 5.0, "w_dice": 5.0, "alpha": 0.25, "gamma": 2.0}
MASKFORMER = {"w_class": 1.0, "w_mask": 20.0, "w_dice": 1.0, "alpha": 0.25, "gamma": 2.0}
CONTRACTS = [
    contract(("logits", "mask_values", "target_values"), mask_cost="bce", **MASK2FORMER),
    contract(("mask_values",), mask_cost="focal", **MASKFORMER),
]
