"""box_match_cost: real DETR num_targets, ragged and empty batches, odd class counts, degenerate boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from detr_fast.ops import box_match_cost as function
from detr_fast.ops.box_match_cost import OPERATOR
from tests.ops.contract import BadInput, Case, Contract, Inputs
from tests.ops.packed import bad_packing, costs_contract, with_


def make(
    rng: torch.Generator,
    num_targets: tuple[int, ...],
    queries: int,
    classes: int,
    layers: int | None = None,
    scale: float = 1.0,
    **options: Any,
) -> Inputs:
    """Boxes as a sigmoid makes them; targets with num_targets from tiny to the whole image."""
    lead = (len(num_targets), queries) if layers is None else (layers, len(num_targets), queries)
    return {
        "logits": 3 * scale * torch.randn(*lead, classes, generator=rng, dtype=torch.float64),
        "boxes": torch.randn(*lead, 4, generator=rng, dtype=torch.float64).sigmoid(),
        "target_labels": torch.randint(classes, (sum(num_targets),), generator=rng),
        "target_boxes": torch.rand(sum(num_targets), 4, generator=rng, dtype=torch.float64) ** 2,
        "num_targets": num_targets,
        **options,
    }


def degenerate(rng: torch.Generator, **options: Any) -> Inputs:
    """Zero and negative num_targets on both sides, points and lines in one place, identical boxes."""
    inputs = make(rng, (9, 6), 21, 5, 2, **options)
    for boxes in (inputs["boxes"], inputs["target_boxes"]):
        boxes[..., ::3, 2] = 0
        boxes[..., 1::4, 3] *= -1
        boxes[..., ::5, 2:] = 0
        boxes[..., ::7, :2] = 0.5
    inputs["boxes"][:, 0, :9] = inputs["target_boxes"][:9]
    return inputs


def big(rng: torch.Generator, **options: Any) -> Inputs:
    """Boxes in pixels."""
    inputs = make(rng, (5, 2), 19, 3, 1, **options)
    return {**inputs, "boxes": 1333 * inputs["boxes"], "target_boxes": 1333 * inputs["target_boxes"]}


def cases(**options: Any) -> list[Case]:
    shapes: dict[str, Callable[[torch.Generator], Inputs]] = {
        "layers_ragged": partial(make, num_targets=(7, 0, 13), queries=100, classes=92, layers=3),
        "one_layer": partial(make, num_targets=(3, 4), queries=30, classes=11),
        "one_class": partial(make, num_targets=(2, 1), queries=9, classes=1, layers=2),
        "few_classes": partial(make, num_targets=(3,), queries=17, classes=7, layers=2),
        "vector_of_classes": partial(make, num_targets=(3, 5), queries=16, classes=16, layers=1),
        "many_classes": partial(make, num_targets=(4,), queries=11, classes=1204, layers=1),
        "more_targets_than_queries": partial(make, num_targets=(40, 1), queries=6, classes=20, layers=2),
        "one_query": partial(make, num_targets=(2, 3), queries=1, classes=92, layers=6),
        "long_rows": partial(make, num_targets=(5,), queries=900, classes=91, layers=2),
        "large_logits": partial(make, num_targets=(4, 4), queries=20, classes=33, layers=1, scale=60.0),
        "degenerate_boxes": degenerate,
        "pixels": big,
        "no_targets": partial(make, num_targets=(0, 0), queries=5, classes=4, layers=2),
        "no_images": partial(make, num_targets=(), queries=5, classes=4, layers=2),
        "no_queries": partial(make, num_targets=(2, 1), queries=0, classes=4, layers=2),
        "no_layers": partial(make, num_targets=(2, 1), queries=3, classes=4, layers=0),
    }
    return [
        Case(f"{options['classification']}_{name}", partial(inputs, **options))
        for name, inputs in shapes.items()
    ]


BAD_INPUTS = [
    *bad_packing("target_labels", 92),
    BadInput("logits_2d", with_(logits=lambda x: x[0, 0]), ValueError, r"logits: expected \[L, B, Q, K\]"),
    BadInput("boxes_other_queries", with_(boxes=lambda x: x[:, :, 1:]), ValueError, "boxes: expected"),
    BadInput(
        "boxes_5_numbers", with_(boxes=lambda x: x[..., [0, 1, 2, 3, 3]]), ValueError, "boxes: expected"
    ),
    BadInput(
        "target_boxes_short", with_(target_boxes=lambda x: x[1:]), ValueError, "target_boxes: .*sumT, 4"
    ),
    BadInput("integer_boxes", with_(boxes=lambda x: x.int()), TypeError, "boxes: .*int32"),
    BadInput("device", with_(boxes=lambda x: x.to("meta")), ValueError, "boxes: .*cpu.*meta"),
    BadInput("classification", with_(classification="sigmoid"), ValueError, "classification: .*'sigmoid'"),
    BadInput("weight_nan", with_(w_l1=float("nan")), ValueError, "w_l1"),
    BadInput("gamma_negative", with_(gamma=-1.0), ValueError, "gamma >= 0"),
]


def contract(cast: tuple[str, ...], **options: Any) -> Contract:
    return costs_contract(OPERATOR, function, cases(**options), cast, BAD_INPUTS)


WEIGHTS = {"w_l1": 5.0, "w_giou": 2.0}
CONTRACTS = [
    contract(("logits", "boxes"), classification="softmax", w_class=1.0, alpha=0.25, gamma=2.0, **WEIGHTS),
    contract(("logits",), classification="focal", w_class=2.0, alpha=0.25, gamma=2.0, **WEIGHTS),
]
