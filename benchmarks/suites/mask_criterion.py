"""The criterion of mask classifiers, matching included, beside facebookresearch/Mask2Former's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.contract import compare, compare_norm
from benchmarks.peers import official_mask2former
from benchmarks.suite import (
    FORWARD,
    FORWARD_BACKWARD,
    OURS,
    Contender,
    Suite,
    Work,
    by_reference,
    criterion,
    drawn_from,
    size_of,
)
from benchmarks.suites.detection import COCO_COUNTS, random_boxes
from detr_fast.criterion import MaskSetCriterion, PointDraws
from detr_fast.matcher import MaskMatcher
from detr_fast.structures import MaskPredictions

OFFICIAL = "facebookresearch/Mask2Former"
WEIGHTS = {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}


@dataclass(frozen=True)
class Inputs:
    """Predictions of all layers of a mask classifier and the targets of the batch, in the official form.

    draws: the random points, so that results can be compared; None: fresh ones in each call.
    """

    predictions: MaskPredictions
    targets: list[dict[str, Tensor]]
    draws: PointDraws | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"logits": self.predictions.logits, "masks": self.predictions.masks}

    def drawn(self, generator: Generator) -> Inputs:
        """The same call with random points that stay: Mask2Former's numbers of them."""
        layers, images = self.predictions.logits.shape[:2]
        masks = sum(len(target["labels"]) for target in self.targets)
        shapes = ((images, 12544), (masks, 3 * 12544), (masks, 3136))
        draw = drawn_from(generator)
        return replace(self, draws=PointDraws(*(torch.rand(layers, *shape, 2, **draw) for shape in shapes)))


@dataclass(frozen=True)
class Masks:
    """What Mask2Former's criterion sees in one training step.

    targets: of each image. size: side of the padded images; masks are predicted at a quarter of it.
    checked_at: the side at which the results of up to four images are compared instead, where float64 has
        no room for the timed call.
    """

    name: str
    targets: tuple[int, ...]
    queries: int = 100
    layers: int = 10
    classes: int = 133
    size: int = 1024
    checked_at: int | None = None
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD_BACKWARD,)

    def inputs(self, generator: Generator) -> Inputs:
        shape = (self.layers, len(self.targets), self.queries)
        draw = drawn_from(generator)
        logits = torch.randn(*shape, self.classes + 1, **draw)
        masks = 4 * torch.randn(*shape, self.size // 4, self.size // 4, **draw)
        targets = []
        for count in self.targets:
            blobs = torch.randn(1, count, 8, 8, **draw)
            labels = torch.randint(self.classes, (count,), **draw)
            bits = F.interpolate((blobs > 0).byte(), size=(self.size, self.size))[0].bool()
            targets.append({"labels": labels, "boxes": random_boxes(generator, count), "masks": bits})
        return Inputs(MaskPredictions(logits, masks), targets)


def _to_check(case: Masks, inputs: Inputs, generator: Generator, queries: int | None) -> Inputs:
    if case.checked_at is not None:
        inputs = replace(case, size=case.checked_at, targets=case.targets[:4]).inputs(generator)
    return inputs.drawn(generator)


def _ours(inputs: Inputs, targets: Any, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    criterion = MaskSetCriterion(logits.shape[-1] - 1, MaskMatcher(), {})
    return criterion(MaskPredictions(logits, masks), targets, draws=inputs.draws)


def _official(inputs: Inputs, targets: Any, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    outputs = MaskPredictions(logits, masks).as_dict()
    return official_mask2former.criterion(outputs, targets, logits.shape[-1] - 1, inputs.draws)


def contenders(case: Masks) -> list[Contender]:
    return [
        criterion(OURS, _ours, WEIGHTS, ours=True),
        criterion(OFFICIAL, _official, WEIGHTS, quick=False, waits=True),
    ]


def _verify(expected: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> None:
    """Gradients of masks by their norm: in float32 a mask may choose another of two like uncertain points."""
    compare({name: x for name, x in expected.items() if name != "grad_masks"}, result)
    compare_norm("grad_masks", expected["grad_masks"], result["grad_masks"], 1e-2)


def _work(inputs: Inputs, pass_: str) -> Work:
    """Maps of all queries for the matching, and a gradient of each; targets' masks once."""
    predictions = size_of(inputs.predictions.logits, inputs.predictions.masks)
    targets = sum(size_of(*target.values()) for target in inputs.targets)
    return Work((1 if pass_ == FORWARD else 2) * predictions + targets)


PARTS = ("mask_match_cost", "linear_assignment", "point_sample", "class_loss")
# the most targets of one image, whose memory is measured
MOST_MASKS = Masks("B=1 T=100 1024x1024", (100,))
SUITES = [
    Suite(
        "mask_criterion",
        contenders,
        _work,
        cases=[Masks("B=2 T=20 1024x1024", (14, 6))],
        gpu_cases=[
            Masks("B=2 Q=100 1024x1024", (14, 6), checked_at=256),
            Masks("L=10 B=16 Q=100 1024x1024", COCO_COUNTS, checked_at=256, quick=False),
        ],
        tiny=[Masks("tiny", (2, 3), 6, 2, 5, size=64), Masks("checked smaller", (2, 3), 6, 2, 5, 64, 32)],
        expected=by_reference(criterion("", _official, WEIGHTS)),
        verify=_verify,
        to_check=_to_check,
        parts=PARTS,
    )
]
