"""What a result must satisfy before it is timed: agreement with the reference on the same inputs.

Results come in canonical forms: mappings of named tensors, or the query of each target for matchings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import official_detr, official_mask2former
from benchmarks.cases import (
    FORWARD,
    AssignmentInputs,
    AttentionInputs,
    DetectionInputs,
    MaskCostInputs,
    MaskInputs,
    PointSampleInputs,
)
from detr_fast.criterion import PointDraws
from detr_fast.ops import box_match_cost, mask_match_cost, ms_deform_attn, ms_deform_attn_fused, point_sample


class ContractFailed(Exception):
    """A result differs from the reference, so its time means nothing."""


@dataclass(frozen=True)
class Contract:
    """`expected(inputs, pass)` computes what `verify(expected, result)` compares a result with."""

    expected: Callable[[Any, str], Any]
    verify: Callable[[Any, Any], None]


# Largest error, relative to the largest entry of the float64 reference, or one rounding of a narrower result.
# Locations are multiplied by the level's size before they are rounded, and their gradients see it.
TOLERANCES = {"grad_locations": 5e-4, "grad_offsets": 5e-4}
TOLERANCE = 5e-5


def compare(expected: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> None:
    """Named tensors within the tolerances; raises ContractFailed."""
    if missing := expected.keys() - result.keys():
        raise ContractFailed(f"no {', '.join(sorted(missing))} in the result")
    for name, want in expected.items():
        got = result[name]
        if got.shape != want.shape:
            raise ContractFailed(f"{name}: shape {list(got.shape)} in place of {list(want.shape)}")
        if not torch.isfinite(got).all():
            raise ContractFailed(f"{name}: not finite")
        if want.numel() == 0:
            continue
        error = (got.double() - want).abs().max().item() / max(want.abs().max().item(), 1e-12)
        tolerance = max(TOLERANCES.get(name, TOLERANCE), torch.finfo(got.dtype).eps)
        if error > tolerance:
            raise ContractFailed(f"{name}: relative error {error:.1e} over {tolerance:.0e}")


@dataclass(frozen=True)
class _AttentionExpected:
    values: dict[str, Tensor]
    checked: Tensor | None


def _attention_expected(fused: bool) -> Callable[[AttentionInputs, str], _AttentionExpected]:
    def expected(inputs: AttentionInputs, pass_: str) -> _AttentionExpected:
        def rows(x: Tensor) -> Tensor:
            return (x if inputs.checked is None else x[:, inputs.checked]).double()

        value, grad_output = inputs.value.double(), rows(inputs.grad_output)
        if fused:
            references = rows(inputs.reference_points)
            leaves = {"value": value, "offsets": rows(inputs.offsets), "logits": rows(inputs.logits)}
        else:
            leaves = {"value": value, "locations": rows(inputs.locations), "weights": rows(inputs.weights)}
        for leaf in leaves.values():
            leaf.requires_grad_(pass_ != FORWARD)
        a, b, c = leaves.values()
        if fused:
            output = ms_deform_attn_fused(a, inputs.shapes, references, b, c, backend="reference")
        else:
            output = ms_deform_attn(a, inputs.shapes, b, c, backend="reference")
        values = {"output": output.detach()}
        if pass_ != FORWARD:
            grads = torch.autograd.grad(output, (a, b, c), grad_output)
            values |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return _AttentionExpected(values, inputs.checked)

    return expected


def _verify_attention(expected: _AttentionExpected, result: Mapping[str, Tensor]) -> None:
    if expected.checked is None:
        compare(expected.values, result)
        return
    per_query = [name for name in result if name != "grad_value"]
    compare(expected.values, {**result, **{name: result[name][:, expected.checked] for name in per_query}})
    for name in per_query:
        if name != "output":
            rest = result[name].clone()
            rest[:, expected.checked] = 0
            if rest.count_nonzero():
                raise ContractFailed(f"{name}: not zero for queries without an output gradient")


@dataclass(frozen=True)
class _MatchingExpected:
    """costs: one float64 [T, Q] matrix a problem, and the least total cost of each."""

    costs: list[Tensor]
    totals: list[float]
    tolerance: float


def _matching(costs: Iterator[Tensor], tolerance: float) -> _MatchingExpected:
    problems = list(costs)
    totals = []
    for cost in problems:
        rows, columns = linear_sum_assignment(cost.numpy())
        totals.append(cost.numpy()[rows, columns].sum())
    return _MatchingExpected(problems, totals, tolerance)


def _assignment_expected(inputs: AssignmentInputs, pass_: str) -> _MatchingExpected:
    return _matching(iter(inputs.target_major.double().split(inputs.sizes)), 1e-6)


def _matcher_expected(inputs: DetectionInputs, pass_: str) -> _MatchingExpected:
    costs = _cost_expected(inputs, pass_)["costs"]
    # float32 costs may choose another pair among near equals
    return _matching((block for layer in costs for block in layer.split(inputs.sizes)), 1e-5)


def _verify_matching(expected: _MatchingExpected, queries: Sequence[Tensor]) -> None:
    """`queries`: one int64 [T] a problem, the query of each target or -1."""
    if len(queries) != len(expected.costs):
        raise ContractFailed(f"{len(queries)} problems solved in place of {len(expected.costs)}")
    for i, (query, cost, total) in enumerate(zip(queries, expected.costs, expected.totals, strict=True)):
        targets = torch.nonzero(query >= 0).flatten()
        chosen = query[targets]
        if len(query) != cost.shape[0] or len(targets) != min(cost.shape):
            raise ContractFailed(f"problem {i}: {len(targets)} targets matched in place of {min(cost.shape)}")
        if chosen.unique().numel() != len(chosen) or (chosen >= cost.shape[1]).any():
            raise ContractFailed(f"problem {i}: a query is used twice or does not exist")
        found = cost[targets, chosen].sum().item()
        if abs(found - total) > expected.tolerance * max(1.0, abs(total)):
            raise ContractFailed(f"problem {i}: total cost {found:.9g}, the least is {total:.9g}")


def _cost_expected(inputs: DetectionInputs, pass_: str) -> dict[str, Tensor]:
    predictions = inputs.predictions
    costs = box_match_cost(
        predictions.logits.double(),
        predictions.boxes.double(),
        inputs.labels,
        inputs.boxes.double(),
        inputs.sizes,
        backend="reference",
    )
    return {"costs": costs}


def _criterion_expected(inputs: DetectionInputs, pass_: str) -> dict[str, Tensor]:
    logits = inputs.predictions.logits.double().requires_grad_()
    boxes = inputs.predictions.boxes.double().requires_grad_()
    outputs = type(inputs.predictions)(logits, boxes).as_dict()
    targets = [{**target, "boxes": target["boxes"].double()} for target in inputs.targets]
    losses = official_detr.criterion(outputs, targets, logits.shape[-1] - 1)
    return losses_and_gradients(losses, weighted_total(losses), logits, boxes)


def _mask_criterion_expected(inputs: MaskInputs, pass_: str) -> dict[str, Tensor]:
    assert inputs.draws is not None
    logits = inputs.predictions.logits.double().requires_grad_()
    masks = inputs.predictions.masks.double().requires_grad_()
    drawn = (x.double() for x in (inputs.draws.match, inputs.draws.candidates, inputs.draws.extra))
    losses = official_mask2former.criterion(
        type(inputs.predictions)(logits, masks).as_dict(),
        inputs.targets,
        logits.shape[-1] - 1,
        PointDraws(*drawn),
    )
    return mask_losses_and_gradients(losses, logits, masks)


def _verify_mask_criterion(expected: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> None:
    """Gradients of masks by their norm: in float32 a mask may choose another of two like uncertain points."""
    compare({name: x for name, x in expected.items() if name != "grad_masks"}, result)
    grad = expected["grad_masks"]
    error = float((result["grad_masks"].double() - grad).norm() / grad.norm())
    if not error <= 1e-2:
        raise ContractFailed(f"grad_masks: relative error {error:.1e} over 1e-02")


def mask_losses_and_gradients(
    losses: Mapping[str, Tensor], logits: Tensor, masks: Tensor
) -> dict[str, Tensor]:
    """Losses by name, with the gradients of the scalar that Mask2Former trains on: weights 2, 5 and 5."""
    weights = {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}
    total = torch.stack([weights["_".join(name.split("_")[:2])] * x for name, x in losses.items()]).sum()
    grad_logits, grad_masks = torch.autograd.grad(total, (logits, masks))
    named = {name: loss.detach() for name, loss in losses.items()}
    return {**named, "grad_logits": grad_logits, "grad_masks": grad_masks}


def weighted_total(losses: Mapping[str, Tensor]) -> Tensor:
    """The scalar that DETR trains on: weights 1, 5 and 2 for every layer."""
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    parts = [
        weights["_".join(name.split("_")[:2])] * x for name, x in losses.items() if name.startswith("loss")
    ]
    return torch.stack(parts).sum()


def losses_and_gradients(
    losses: Mapping[str, Tensor], total: Tensor, logits: Tensor, boxes: Tensor
) -> dict[str, Tensor]:
    """Losses by name, with the gradients of their weighted total."""
    grad_logits, grad_boxes = torch.autograd.grad(total, (logits, boxes))
    named = {name: loss.detach() for name, loss in losses.items()}
    return {**named, "grad_logits": grad_logits, "grad_boxes": grad_boxes}


def _mask_cost_expected(inputs: MaskCostInputs, pass_: str) -> dict[str, Tensor]:
    costs = mask_match_cost(
        inputs.logits.double(),
        inputs.mask_values,
        inputs.labels,
        inputs.target_values,
        inputs.sizes,
        backend="reference",
        **inputs.options,
    )
    return {"costs": costs}


def _point_sample_expected(inputs: PointSampleInputs, pass_: str) -> dict[str, Tensor]:
    maps = inputs.maps.double()
    values = {}
    if pass_ != FORWARD:
        maps.requires_grad_()
    out = point_sample(maps, inputs.points.double(), map_index=inputs.map_index, backend="reference")
    if pass_ != FORWARD:
        (values["grad_maps"],) = torch.autograd.grad(out, maps, inputs.grad_output.double())
    return {"output": out.detach(), **values}


ATTENTION = Contract(_attention_expected(fused=False), _verify_attention)
FUSED_ATTENTION = Contract(_attention_expected(fused=True), _verify_attention)
ASSIGNMENT = Contract(_assignment_expected, _verify_matching)
COSTS = Contract(_cost_expected, compare)
MASK_COSTS = Contract(_mask_cost_expected, compare)
MATCHER = Contract(_matcher_expected, _verify_matching)
CRITERION = Contract(_criterion_expected, compare)
MASK_CRITERION = Contract(_mask_criterion_expected, _verify_mask_criterion)
POINT_SAMPLE = Contract(_point_sample_expected, compare)
