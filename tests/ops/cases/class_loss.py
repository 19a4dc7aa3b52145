"""class_loss: DETR and Deformable DETR sizes, ragged and empty batches, odd class counts, large logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops import class_loss as function
from detr_fast.ops.class_loss import OPERATOR
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance
from tests.ops.packed import bad_packing, with_


def matching(rng: torch.Generator, num_targets: tuple[int, ...], queries: int, layers: int) -> Tensor:
    """[L, sumT]: distinct random queries in each image, -1 for targets beyond their number."""
    rows = []
    for _ in range(layers):
        parts = [torch.empty(0, dtype=torch.int64)]
        for size in num_targets:
            chosen = torch.cat((torch.randperm(queries, generator=rng), torch.full((size,), -1)))[:size]
            parts.append(chosen[torch.randperm(size, generator=rng)])
        rows.append(torch.cat(parts))
    return torch.stack(rows) if rows else torch.empty(0, sum(num_targets), dtype=torch.int64)


def make(
    rng: torch.Generator,
    num_targets: tuple[int, ...],
    queries: int,
    classes: int,
    layers: int,
    scale: float = 1.0,
    weighted: bool = False,
    **options: Any,
) -> Inputs:
    """`classes`: those of objects; `weighted`: with `target_weights`."""
    columns = classes + (options["classification"] == "softmax")
    shape = (layers, len(num_targets), queries, columns)
    weights = torch.rand(layers, sum(num_targets), 2, generator=rng, dtype=torch.float64)
    return {
        "logits": 3 * scale * torch.randn(shape, generator=rng, dtype=torch.float64),
        "labels": torch.randint(classes, (sum(num_targets),), generator=rng),
        "query": matching(rng, num_targets, queries, layers),
        "num_targets": num_targets,
        **({"target_weights": weights} if weighted else {}),
        **options,
    }


def cases(**options: Any) -> list[Case]:
    shapes: dict[str, Callable[[torch.Generator], Inputs]] = {
        "layers_ragged": partial(make, num_targets=(7, 0, 13), queries=40, classes=91, layers=3),
        "one_class": partial(make, num_targets=(2, 1), queries=9, classes=1, layers=2),
        "few_classes": partial(make, num_targets=(3,), queries=17, classes=6, layers=2),
        "vector_of_classes": partial(make, num_targets=(3, 5), queries=16, classes=16, layers=1),
        "many_classes": partial(make, num_targets=(4,), queries=5, classes=1203, layers=1),
        "more_targets_than_queries": partial(make, num_targets=(40, 1), queries=6, classes=20, layers=2),
        "one_query": partial(make, num_targets=(1, 3), queries=1, classes=91, layers=6),
        "many_targets": partial(make, num_targets=(60,), queries=100, classes=12, layers=1),
        "large_logits": partial(make, num_targets=(4, 4), queries=20, classes=33, layers=1, scale=60.0),
        "no_targets": partial(make, num_targets=(0, 0), queries=5, classes=4, layers=2),
        "no_images": partial(make, num_targets=(), queries=5, classes=4, layers=2),
        "no_queries": partial(make, num_targets=(2, 1), queries=0, classes=4, layers=2),
        "no_layers": partial(make, num_targets=(2, 1), queries=3, classes=4, layers=0),
    }
    if options["classification"] != "softmax":
        shapes["gamma"] = partial(make, num_targets=(7, 3), queries=20, classes=11, layers=2)
    return [
        Case(
            f"{options['classification']}_{'weighted_' * options.get('weighted', False)}{name}",
            partial(inputs, **{**options, **({"gamma": 1.5} if name == "gamma" else {})}),
        )
        for name, inputs in shapes.items()
    ]


def query(value: int) -> Callable[[Tensor], Tensor]:
    def change(query: Tensor) -> Tensor:
        query = query.clone()
        query[1, 2] = value
        return query

    return change


_WEIGHTS = torch.rand(3, 20, 2)
BAD_INPUTS = [
    *bad_packing("labels", 91),
    BadInput("logits_3d", with_(logits=lambda x: x[0]), ValueError, r"logits: expected \[L, B, Q"),
    BadInput("query_1d", with_(query=lambda x: x[0]), ValueError, "query: expected"),
    BadInput("query_int32", with_(query=lambda x: x.int()), TypeError, "query: .*int32"),
    BadInput("query_Q", with_(query=query(40)), ValueError, r"query: expected values in \[-1, 40\); got 40"),
    BadInput("query_negative", with_(query=query(-2)), ValueError, "query: .*got -2"),
    BadInput("device", with_(query=lambda x: x.to("meta")), ValueError, "query: .*cpu.*meta"),
    BadInput("classification", with_(classification="sigmoid"), ValueError, "classification: .*'sigmoid'"),
    BadInput(
        "softmax_weights",
        with_(classification="softmax", target_weights=_WEIGHTS),
        ValueError,
        "target_weights: expected None",
    ),
    BadInput(
        "varifocal_alone",
        with_(classification="varifocal", target_weights=None),
        ValueError,
        "target_weights: .*got None",
    ),
    BadInput(
        "weights_2d",
        with_(classification="varifocal", target_weights=_WEIGHTS[..., 0]),
        ValueError,
        r"target_weights: expected \[L, sumT, 2\] = \[3, 20, 2\]; got \[3, 20\]",
    ),
    BadInput(
        "weights_int",
        with_(classification="focal", target_weights=_WEIGHTS.int()),
        TypeError,
        "target_weights: .*int32",
    ),
    BadInput(
        "weights_device",
        with_(classification="varifocal", target_weights=_WEIGHTS.to("meta")),
        ValueError,
        "target_weights: .*meta",
    ),
    BadInput("alpha_nan", with_(alpha=float("nan")), ValueError, "alpha"),
    BadInput("gamma_negative", with_(gamma=-1.0), ValueError, "gamma >= 0"),
]


def contract(**options: Any) -> Contract:
    single = Tolerance(forward=1e-6, backward=2e-6)
    return Contract(
        operator=OPERATOR,
        function=function,
        cases=cases(**options),
        dtypes={
            torch.float32: single,
            # gradients are rounded to the dtype, by the interpreter towards zero
            torch.bfloat16: Tolerance(forward=1e-6, backward=8e-3),
            torch.float16: Tolerance(forward=1e-6, backward=1e-3),
        },
        cast=("logits",),
        differentiable=("logits",),
        bad_inputs=BAD_INPUTS,
    )


OPTIONS = {"eos_coef": 0.1, "alpha": 0.25, "gamma": 2.0}
CONTRACTS = [
    contract(classification="softmax", **OPTIONS),
    contract(classification="focal", **OPTIONS),
    contract(classification="focal", weighted=True, **OPTIONS),
    contract(classification="varifocal", weighted=True, **OPTIONS),
]
