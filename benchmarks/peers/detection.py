"""Matching cost, matcher and criterion: ours and facebookresearch/detr's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks import contract, goals, official_detr
from benchmarks.cases import DetectionInputs
from benchmarks.peers.peer import Call, Contender, Peer, from_pairs
from detr_fast.criterion import SetCriterion
from detr_fast.matcher import HungarianMatcher
from detr_fast.ops import box_match_cost
from detr_fast.structures import Matches, PackedTargets, Predictions


def _ours_cost(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
    predictions = inputs.predictions
    return lambda: box_match_cost(
        predictions.logits, predictions.boxes, inputs.labels, inputs.boxes, inputs.sizes
    )


def _official_cost(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
    layers = official_detr.layers_of(inputs.outputs)
    return lambda: [official_detr.block_diagonal_cost(layer, inputs.targets) for layer in layers]


def _diagonal_blocks(result: list[Tensor], inputs: DetectionInputs) -> dict[str, Tensor]:
    """[L, sumT, Q]: of each layer's [B, Q, sumT] the blocks of an image's own targets."""
    image = torch.repeat_interleave(torch.arange(len(inputs.sizes)), torch.tensor(inputs.sizes))
    target = torch.arange(len(image))
    return {"costs": torch.stack([costs[image, :, target] for costs in result])}


def _ours_match(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    return lambda: matcher.match(inputs.predictions, PackedTargets.from_list(inputs.targets))


def _ours_drop_in(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    layers = official_detr.layers_of(inputs.outputs)
    return lambda: [matcher(layer, inputs.targets) for layer in layers]


def _official_match(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
    layers = official_detr.layers_of(inputs.outputs)
    return lambda: [official_detr.match(layer, inputs.targets) for layer in layers]


def _from_matches(result: Matches, inputs: DetectionInputs) -> list[Tensor]:
    return [query for layer in result.query for query in layer.split(inputs.sizes)]


def _from_layers(result: list[official_detr.Indices], inputs: DetectionInputs) -> list[Tensor]:
    return [
        query
        for layer in result
        for query in from_pairs([(target, query) for query, target in layer], inputs.sizes)
    ]


def _criterion(name: str, losses_of: Callable[[DetectionInputs, Tensor, Tensor], Any]) -> Contender:
    """Losses of all layers and the gradients of their weighted total."""

    def prepare(inputs: DetectionInputs, pass_: str, threads: int) -> Call:
        logits = inputs.predictions.logits.detach().requires_grad_()
        boxes = inputs.predictions.boxes.detach().requires_grad_()

        def step() -> dict[str, Tensor]:
            losses: Mapping[str, Tensor] = losses_of(inputs, logits, boxes)
            return contract.losses_and_gradients(losses, contract.weighted_total(losses), logits, boxes)

        return step

    return Contender(name, prepare)


def _ours_losses(inputs: DetectionInputs, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    criterion = SetCriterion(
        num_classes=logits.shape[-1] - 1,
        matcher=HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2),
        weight_dict={"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2},
        eos_coef=0.1,
        losses=["labels", "boxes", "cardinality"],
    )
    return criterion(Predictions(logits, boxes), inputs.targets)


def _official_losses(inputs: DetectionInputs, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    return official_detr.criterion(Predictions(logits, boxes).as_dict(), inputs.targets, logits.shape[-1] - 1)


def peers() -> list[Peer]:
    official, by_layer = goals.OFFICIAL_DETR, "called layer by layer"

    def costs(result: Tensor, inputs: DetectionInputs) -> dict[str, Tensor]:
        return {"costs": result}

    return [
        Peer(
            "box_match_cost",
            Contender(official, _official_cost, _diagonal_blocks),
            Contender("detr_fast", _ours_cost, costs),
            contract.COSTS,
            quick=False,
        ),
        Peer(
            "matcher",
            Contender(official, _official_match, _from_layers),
            Contender("detr_fast", _ours_match, _from_matches),
            contract.MATCHER,
        ),
        Peer(
            "matcher",
            Contender(f"{official}, {by_layer}", _official_match, _from_layers),
            Contender(f"detr_fast, {by_layer}", _ours_drop_in, _from_layers),
            contract.MATCHER,
            quick=False,
        ),
        Peer(
            "criterion",
            _criterion(official, _official_losses),
            _criterion("detr_fast", _ours_losses),
            contract.CRITERION,
            quick=False,
        ),
    ]
