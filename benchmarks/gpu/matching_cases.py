"""The cases of a GPU run beside attention: matchers, criteria, whole models, and their operators alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.cases import (
    ASSIGNMENT,
    FORWARD,
    FORWARD_BACKWARD,
    POINT_SAMPLE,
    AssignmentCase,
    Case,
    DetectionCase,
    MaskCase,
    MaskCostCase,
    MaskInputs,
)
from benchmarks.gpu.loss_cases import BOXES, LossCase
from benchmarks.gpu.model_cases import ModelCase
from benchmarks.gpu.work import on_device
from benchmarks.peers.models import DEFORMABLE_DETR_R50, MASK2FORMER_R50

# Objects in the images of COCO: 7 on average, few in most, up to 60.
COCO_COUNTS = (3, 1, 8, 1, 2, 60, 1, 4, 2, 14, 1, 5, 2, 3, 1, 4)
IMAGES = (16, 96)  # of an assignment; the layers and images of one step together


# their results are compared with scipy's or a loop's on the host
CHECKED_ON_HOST = ("linear_assignment", "matcher", "criterion")


@dataclass(frozen=True)
class MatchingJob:
    """One case; what is timed follows from its operator.

    checked: a smaller case whose result is compared where float64 has no room for the timed one.
    """

    case: Case
    checked: Case | None = None

    @property
    def name(self) -> str:
        if isinstance(self.case, AssignmentCase):
            return f"{self.case.name} B={self.case.images}"
        return self.case.name

    @property
    def pass_(self) -> str:
        return self.case.passes[0]

    @property
    def dtype(self) -> str:
        return self.case.dtype if isinstance(self.case, ModelCase) else "fp32"

    def inputs(self, device: torch.device, seed: int) -> tuple[Any, Any, Any]:
        """Inputs to time and inputs to check, both on the device, and the latter where they are checked."""
        timed = self._drawn(self.case, device, seed)
        to_check = timed if self.checked is None else self._drawn(self.checked, device, seed)
        if isinstance(to_check, MaskInputs):
            with device:
                to_check = to_check.drawn(torch.Generator(device).manual_seed(seed))
        host = self.case.operator in CHECKED_ON_HOST
        return timed, to_check, on_device(to_check, "cpu") if host else to_check

    def _drawn(self, case: Case, device: torch.device, seed: int) -> Any:
        if self.case.operator in CHECKED_ON_HOST:
            return on_device(case.inputs(torch.Generator().manual_seed(seed)), device)
        with device:
            return case.inputs(torch.Generator(device).manual_seed(seed))


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


def _mask_criterion(case: MaskCase) -> MatchingJob:
    return MatchingJob(case, replace(case, size=case.size // 4, targets=case.targets[:4]))


MODEL_JOBS = tuple(
    MatchingJob(ModelCase(model, images, dtype))
    for model in (DEFORMABLE_DETR_R50, MASK2FORMER_R50)
    for images in (1, 2)
    for dtype in ("fp32", "bf16")
)
MASK_JOBS = (
    _mask_criterion(MaskCase("B=2 Q=100 1024x1024", (14, 6))),
    _mask_criterion(MaskCase("L=10 B=16 Q=100 1024x1024", COCO_COUNTS)),
    MatchingJob(MaskCostCase("Mask2Former L=10 B=16 Q=100", COCO_COUNTS, 12544)),
    MatchingJob(MaskCostCase("MaskFormer L=6 B=16 Q=100", COCO_COUNTS, 6400, "focal", layers=6)),
    *(
        MatchingJob(replace(case, passes=(pass_,)))
        for case in POINT_SAMPLE
        if case.name != "smallest"
        for pass_ in case.passes
    ),
)
LOSS_JOBS = tuple(
    MatchingJob(LossCase(job.case, kind))
    for job in _detection("criterion", FORWARD_BACKWARD)[:2]
    for kind in ("softmax", "focal", BOXES)
    if isinstance(job.case, DetectionCase)
)
MATCHING_JOBS = (
    *_detection("matcher", FORWARD),
    *_detection("criterion", FORWARD_BACKWARD),
    *MASK_JOBS,
    *LOSS_JOBS,
    *(
        MatchingJob(replace(case, images=images))
        for images in IMAGES
        for case in ASSIGNMENT
        if case.queries > 1
    ),
    *MODEL_JOBS,
)
QUICK_MATCHING_JOBS = (
    *(
        job
        for job in MATCHING_JOBS
        if job.name
        in ("L=6 B=16 Q=300", "300x30 clustered B=16", "300x100 clustered B=16", "900x300 early B=16")
    ),
    MASK_JOBS[0],
    *LOSS_JOBS[::2][:2],
    MODEL_JOBS[1],
    MODEL_JOBS[5],
)
