"""The matching cases of a GPU run: assignment alone, the matcher, and the whole criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detr_fast.benchmarking.cases import (
    ASSIGNMENT,
    FORWARD,
    FORWARD_BACKWARD,
    AssignmentCase,
    AssignmentInputs,
    DetectionCase,
    DetectionInputs,
)
from detr_fast.structures import Predictions

# Objects in the images of COCO: 7 on average, few in most, up to 60.
COCO_COUNTS = (3, 1, 8, 1, 2, 60, 1, 4, 2, 14, 1, 5, 2, 3, 1, 4)
IMAGES = (16, 96)  # of an assignment; the layers and images of one step together


@dataclass(frozen=True)
class MatchingJob:
    """One case; what is timed follows from its operator."""

    case: AssignmentCase | DetectionCase

    @property
    def name(self) -> str:
        if isinstance(self.case, AssignmentCase):
            return f"{self.case.name} B={self.case.images}"
        return self.case.name

    @property
    def pass_(self) -> str:
        return self.case.passes[0]


def _detection(operator: str, pass_: str) -> tuple[MatchingJob, ...]:
    sizes = (("", 6, 300, 92), ("", 7, 900, 92), ("Mask2Former ", 10, 100, 81))
    return tuple(
        MatchingJob(
            DetectionCase(
                f"{kind}L={L} B={len(COCO_COUNTS)} Q={Q}",
                len(COCO_COUNTS),
                Q,
                COCO_COUNTS,
                L,
                classes=K,
                operator=operator,
                passes=(pass_,),
            )
        )
        for kind, L, Q, K in sizes
    )


MATCHING_JOBS = (
    *_detection("matcher", FORWARD),
    *_detection("criterion", FORWARD_BACKWARD),
    *(
        MatchingJob(replace(case, images=images))
        for images in IMAGES
        for case in ASSIGNMENT
        if case.queries > 1
    ),
)
QUICK_MATCHING_JOBS = tuple(
    job
    for job in MATCHING_JOBS
    if job.name in ("L=6 B=16 Q=300", "300x30 clustered B=16", "300x100 clustered B=16", "900x300 early B=16")
)


def on_device(
    inputs: AssignmentInputs | DetectionInputs, device: torch.device
) -> AssignmentInputs | DetectionInputs:
    """The same inputs in the device's memory."""
    if isinstance(inputs, AssignmentInputs):
        return replace(
            inputs, query_major=inputs.query_major.to(device), target_major=inputs.target_major.to(device)
        )

    def moved(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in target.items()}

    return replace(
        inputs,
        predictions=Predictions(inputs.predictions.logits.to(device), inputs.predictions.boxes.to(device)),
        targets=[moved(target) for target in inputs.targets],
        labels=inputs.labels.to(device),
        boxes=inputs.boxes.to(device),
    )


def least_bytes(inputs: AssignmentInputs | DetectionInputs, pass_: str) -> int:
    """What a call must read and write: costs once, or predictions and targets once and their gradients."""
    if isinstance(inputs, AssignmentInputs):
        costs = inputs.target_major
        return costs.numel() * costs.element_size() + 8 * costs.shape[0]
    predictions = _bytes(inputs.predictions.logits) + _bytes(inputs.predictions.boxes)
    targets = _bytes(inputs.labels) + _bytes(inputs.boxes)
    if pass_ == FORWARD:
        return predictions + targets + 8 * inputs.predictions.logits.shape[0] * len(inputs.labels)
    return 2 * predictions + targets


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
