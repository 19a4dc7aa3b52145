"""Matching costs of masks: ours, the loops of the official matchers, and one batched PyTorch expression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import contract, goals
from benchmarks.cases import MaskCostInputs
from benchmarks.official_mask2former import pairwise_dice, pairwise_entropy
from benchmarks.peers.peer import Call, Contender, Peer
from detr_fast.ops import mask_match_cost

ALPHA, GAMMA = 0.25, 2.0  # the defaults of ours


def _ours(inputs: MaskCostInputs, pass_: str, threads: int) -> Call:
    tensors = (inputs.logits, inputs.mask_values, inputs.labels, inputs.target_values)
    return lambda: mask_match_cost(*tensors, inputs.sizes, **inputs.options)


def _pairwise_focal(x: Tensor, t: Tensor) -> Tensor:
    """[Q, T] mean focal loss of logits [Q, P] and targets [T, P], as MaskFormer's matcher computes it."""
    p = x.sigmoid()
    positive = (1 - p) ** GAMMA * F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
    negative = p**GAMMA * F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    total = torch.einsum("qp,tp->qt", ALPHA * positive, t)
    return (total + torch.einsum("qp,tp->qt", (1 - ALPHA) * negative, 1 - t)) / x.shape[1]


def _official(inputs: MaskCostInputs, pass_: str, threads: int) -> Call:
    """A loop over layers and images, as in the official matchers; [Q, T] each."""
    options = inputs.options
    pairwise = _pairwise_focal if options["mask_cost"] == "focal" else pairwise_entropy
    layers = len(inputs.logits)
    values = inputs.target_values.expand(layers, -1, -1)

    def costs() -> list[Tensor]:
        blocks = []
        for layer in range(layers):
            targets = zip(inputs.labels.split(inputs.sizes), values[layer].split(inputs.sizes), strict=True)
            for image, (labels, wanted) in enumerate(targets):
                found, wanted = inputs.mask_values[layer, image], wanted.float()
                classes = -inputs.logits[layer, image].softmax(-1)[:, labels]
                blocks.append(
                    options["w_mask"] * pairwise(found, wanted)
                    + options["w_class"] * classes
                    + options["w_dice"] * pairwise_dice(found, wanted)
                )
        return blocks

    return costs


def _stacked(result: list[Tensor], inputs: MaskCostInputs) -> dict[str, Tensor]:
    rows = torch.cat([block.T for block in result])
    return {"costs": rows.view(len(inputs.logits), -1, rows.shape[-1])}


def _batched(inputs: MaskCostInputs, pass_: str, threads: int) -> Call:
    """The same sums as ours: elementwise terms of all layers and images at once, two products an image."""
    options, focal = inputs.options, inputs.options["mask_cost"] == "focal"

    def costs() -> Tensor:
        x = inputs.mask_values
        p = x.sigmoid()
        negative = F.softplus(x)
        difference = x
        if focal:
            positive = ALPHA * (1 - p) ** GAMMA * (negative - x)
            negative = (1 - ALPHA) * p**GAMMA * negative
            difference = negative - positive
        negatives, totals = negative.mean(-1), p.sum(-1)
        classes = -inputs.logits.softmax(-1)
        blocks = []
        targets = zip(
            inputs.labels.split(inputs.sizes), inputs.target_values.split(inputs.sizes, -2), strict=True
        )
        for b, (labels, values) in enumerate(targets):
            t = values.float()
            mask = negatives[:, b, None] - t @ difference[:, b].mT / x.shape[-1]
            dice = 1 - (2 * t @ p[:, b].mT + 1) / (t.sum(-1)[..., None] + totals[:, b, None] + 1)
            blocks.append(
                options["w_class"] * classes[:, b].mT[:, labels]
                + options["w_mask"] * mask
                + options["w_dice"] * dice
            )
        return torch.cat(blocks, 1)

    return costs


def _named(result: Tensor, inputs: MaskCostInputs) -> dict[str, Tensor]:
    return {"costs": result}


def peers() -> list[Peer]:
    def peer(theirs: Contender) -> Peer:
        ours = Contender("detr_fast", _ours, _named)
        return Peer("mask_match_cost", theirs, ours, contract.MASK_COSTS, quick=False)

    return [
        peer(Contender(goals.OFFICIAL_MASK2FORMER, _official, _stacked)),
        peer(Contender("batched PyTorch", _batched, _named)),
    ]
