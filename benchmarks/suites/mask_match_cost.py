"""Matching costs of masks beside the loops of the official matchers, and one batched PyTorch expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.peers.official_mask2former import pairwise_dice, pairwise_entropy
from benchmarks.suite import FORWARD, OURS, Call, Contender, Suite, Work, drawn_from, size_of
from benchmarks.suites.detection import COCO_COUNTS
from benchmarks.suites.mask_criterion import OFFICIAL
from detr_fast.ops import mask_match_cost

OPERATOR, BATCHED = "mask_match_cost", "batched PyTorch"
ALPHA, GAMMA = 0.25, 2.0  # the defaults of ours
WEIGHTS = {"bce": (2.0, 5.0, 5.0), "focal": (1.0, 20.0, 1.0)}  # of class, mask and dice


@dataclass(frozen=True)
class Inputs:
    """The arguments of `mask_match_cost`. loss: bce or focal, of the mask term."""

    logits: Tensor
    mask_values: Tensor
    labels: Tensor
    target_values: Tensor
    num_targets: tuple[int, ...]
    loss: str


@dataclass(frozen=True)
class MaskCost:
    """What the matcher of a mask classifier compares: Mask2Former's at points, each layer's own, with targets
    sampled in 0..1; MaskFormer's ("focal") at the pixels of its maps."""

    name: str
    targets: tuple[int, ...]
    points: int
    loss: str = "bce"
    queries: int = 100
    layers: int = 10
    classes: int = 133
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD,)

    def inputs(self, generator: Generator) -> Inputs:
        lead, total = (self.layers, len(self.targets), self.queries), sum(self.targets)
        draw = drawn_from(generator)
        if self.loss == "bce":
            values = (2 * torch.rand(self.layers, total, self.points, **draw) - 0.5).clamp(0, 1)
        else:
            values = torch.rand(total, self.points, **draw) < 0.3
        return Inputs(
            torch.randn(*lead, self.classes + 1, **draw),
            4 * torch.randn(*lead, self.points, **draw),
            torch.randint(self.classes, (total,), **draw),
            values,
            self.targets,
            self.loss,
        )


def _ours(inputs: Inputs, pass_: str) -> Call:
    options: dict[str, Any] = dict(zip(("w_class", "w_mask", "w_dice"), WEIGHTS[inputs.loss], strict=True))
    options["mask_cost"] = inputs.loss
    tensors = (inputs.logits, inputs.mask_values, inputs.labels, inputs.target_values)
    return lambda: mask_match_cost(*tensors, inputs.num_targets, **options)


def _pairwise_focal(x: Tensor, t: Tensor) -> Tensor:
    """[Q, T] mean focal loss of logits [Q, P] and targets [T, P], as MaskFormer's matcher computes it."""
    p = x.sigmoid()
    positive = (1 - p) ** GAMMA * F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
    negative = p**GAMMA * F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
    total = torch.einsum("qp,tp->qt", ALPHA * positive, t)
    return (total + torch.einsum("qp,tp->qt", (1 - ALPHA) * negative, 1 - t)) / x.shape[1]


def _official(inputs: Inputs, pass_: str) -> Call:
    """A loop over layers and images, as in the official matchers; [Q, T] each."""
    pairwise = _pairwise_focal if inputs.loss == "focal" else pairwise_entropy
    w_class, w_mask, w_dice = WEIGHTS[inputs.loss]
    values = inputs.target_values.expand(len(inputs.logits), -1, -1)

    def costs() -> list[Tensor]:
        blocks = []
        for logits, found_masks, of_layer in zip(inputs.logits, inputs.mask_values, values, strict=True):
            targets = inputs.labels.split(inputs.num_targets), of_layer.split(inputs.num_targets)
            for scores, found, labels, wanted in zip(logits, found_masks, *targets, strict=True):
                wanted, classes = wanted.float(), -scores.softmax(-1)[:, labels]
                masks = w_mask * pairwise(found, wanted) + w_dice * pairwise_dice(found, wanted)
                blocks.append(w_class * classes + masks)
        return blocks

    return costs


def _stacked(result: list[Tensor], inputs: Inputs) -> dict[str, Tensor]:
    rows = torch.cat([block.T for block in result])
    return {"costs": rows.view(len(inputs.logits), -1, rows.shape[-1])}


def _batched(inputs: Inputs, pass_: str) -> Call:
    """The same sums as ours: elementwise terms of all layers and images at once, two products an image."""
    w_class, w_mask, w_dice = WEIGHTS[inputs.loss]

    def costs() -> Tensor:
        x = inputs.mask_values
        p = x.sigmoid()
        negative = F.softplus(x)
        difference = x
        if inputs.loss == "focal":
            positive = ALPHA * (1 - p) ** GAMMA * (negative - x)
            negative = (1 - ALPHA) * p**GAMMA * negative
            difference = negative - positive
        negatives, totals, classes = negative.mean(-1), p.sum(-1), -inputs.logits.softmax(-1)
        labels = inputs.labels.split(inputs.num_targets)
        blocks = []
        for b, t in enumerate(inputs.target_values.split(inputs.num_targets, -2)):
            t = t.float()
            mask = negatives[:, b, None] - t @ difference[:, b].mT / x.shape[-1]
            dice = 1 - (2 * t @ p[:, b].mT + 1) / (t.sum(-1)[..., None] + totals[:, b, None] + 1)
            blocks.append(w_class * classes[:, b].mT[:, labels[b]] + w_mask * mask + w_dice * dice)
        return torch.cat(blocks, 1)

    return costs


def _named(result: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    return {"costs": result}


def _work(inputs: Inputs, pass_: str) -> Work:
    """Two products of an image's queries and targets over their points: for the entropy and for the dice."""
    layers, _, queries, points = inputs.mask_values.shape
    pairs = layers * len(inputs.labels) * queries
    read = size_of(inputs.logits, inputs.mask_values, inputs.labels, inputs.target_values)
    return Work(read + 4 * pairs, 2 * 2 * pairs * points)


def _contenders(case: MaskCost) -> list[Contender]:
    return [
        Contender(OURS, _ours, _named, ours=True),
        Contender(OFFICIAL, _official, _stacked, quick=False),
        Contender(BATCHED, _batched, _named, quick=False),
    ]


SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        _work,
        cases=(
            MaskCost("smallest", (1,), 1, queries=1, layers=1, classes=1),
            MaskCost("Mask2Former B=4 T~14", (7, 12, 16, 20), 12544),
            MaskCost("Mask2Former B=1 T=100", (100,), 12544),
            MaskCost("MaskFormer B=4 T~14", (7, 12, 16, 20), 6400, "focal", layers=6),
        ),
        tiny=tuple(MaskCost(loss, (3, 2), 70, loss, 6, 2, 5) for loss in ("bce", "focal")),
        gpu_cases=(
            MaskCost("Mask2Former L=10 B=16 Q=100", COCO_COUNTS, 12544, quick=False),
            MaskCost("MaskFormer L=6 B=16 Q=100", COCO_COUNTS, 6400, "focal", layers=6, quick=False),
        ),
    )
]
