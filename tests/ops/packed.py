"""What the contracts of operators of packed targets share: changes to inputs, bad inputs, costs' promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.operator import Operator
from tests.ops.contract import BadInput, Case, Contract, Inputs, Tolerance


def with_(**changes: Any) -> Callable[[Inputs], Inputs]:
    """Replaces arguments; a function gets the argument's value."""

    def change(inputs: Inputs) -> Inputs:
        changed = {k: v(inputs[k]) if callable(v) else v for k, v in changes.items()}
        return {**inputs, **changed}

    return change


def label(value: int) -> Callable[[Tensor], Tensor]:
    def change(labels: Tensor) -> Tensor:
        labels = labels.clone()
        labels[3] = value
        return labels

    return change


def bad_packing(labels: str, classes: int) -> list[BadInput]:
    """For a typical case of targets (7, 0, 13); `labels`: the argument, of labels below `classes`."""

    def labelled(change: Any) -> Callable[[Inputs], Inputs]:
        return with_(**{labels: change})

    return [
        BadInput("no_classes", with_(logits=lambda x: x[..., :0]), ValueError, "logits: .* K >= 1"),
        BadInput("integer_logits", with_(logits=lambda x: x.int()), TypeError, "logits: .*int32"),
        BadInput("labels_2d", labelled(lambda x: x[None]), ValueError, f"{labels}: .*sumT"),
        BadInput("labels_int32", labelled(lambda x: x.int()), TypeError, f"{labels}: .*int32"),
        BadInput(
            "label_K",
            labelled(label(classes)),
            ValueError,
            f"{labels}: .*K = {classes}; got {classes} at packed target 3",
        ),
        BadInput("label_negative", labelled(label(-1)), ValueError, f"{labels}: .*got -1"),
        *BAD_COUNTS,
    ]


BAD_COUNTS = [
    BadInput("sizes_sum", with_(num_targets=(7, 1, 13)), ValueError, "num_targets: .*sumT = 20"),
    BadInput(
        "sizes_negative", with_(num_targets=(9, -2, 13)), ValueError, "num_targets: expected counts >= 0"
    ),
    BadInput("sizes_length", with_(num_targets=(7, 13)), ValueError, "num_targets: .*B = 3 images; got 2"),
    BadInput("sizes_tensor", with_(num_targets=torch.tensor([7, 0, 13])), TypeError, "num_targets: .*Tensor"),
]


def costs_contract(
    operator: Operator,
    function: Callable[..., Tensor],
    cases: Sequence[Case],
    cast: tuple[str, ...],
    bad_inputs: Sequence[BadInput],
) -> Contract:
    """Half inputs are widened exactly, so they get no more tolerance than float32."""
    dtypes = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), Tolerance(forward=1e-6))
    return Contract(operator, function, cases, dtypes, cast, bad_inputs=bad_inputs)
