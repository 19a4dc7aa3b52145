"""Every suite at sizes that take milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from benchmarks.peers import transformers_models
from benchmarks.suite import BACKWARD, FORWARD, FORWARD_BACKWARD, Case, Contender, Suite, all_suites
from benchmarks.suites import models
from benchmarks.suites.detection import Detection, Loss
from benchmarks.suites.linear_assignment import Assignment
from benchmarks.suites.mask_criterion import Masks
from benchmarks.suites.mask_match_cost import MaskCost
from benchmarks.suites.models import MASK2FORMER_R50, Model
from benchmarks.suites.ms_deform_attn import ALL_BF16, BF16, FUSED, Attention
from benchmarks.suites.point_sample import PointSample
from detr_fast.models import Mask2Former, Mask2FormerConfig

ATTENTION = Attention("encoder B=2", 2, None, ((6, 5), (3, 2)), heads=2, channels=8, points=2)
DETECTION = Detection("L=2", 12, (3, 5), 2, classes=5)
TRAINING = replace(DETECTION, passes=(FORWARD_BACKWARD,))
MASKS = Masks("B=2", (2, 3), queries=6, layers=2, classes=5, size=64)
SAMPLES = PointSample("rows", (6, 1, 8, 8), rows=4, points=9, passes=(FORWARD, FORWARD_BACKWARD))
CASES: dict[str, tuple[Case, ...]] = {
    "ms_deform_attn": (ATTENTION, replace(ATTENTION, form=FUSED)),
    "linear_assignment": (Assignment(9, 4, "clustered", images=3), Assignment(9, 3, "random", images=2)),
    "box_match_cost": (DETECTION,),
    "matcher": (DETECTION,),
    "criterion": (TRAINING,),
    "class_loss": tuple(Loss(TRAINING, loss) for loss in ("softmax", "focal")),
    "box_loss": (Loss(TRAINING, "boxes"),),
    "mask_criterion": (MASKS,),
    "mask_match_cost": tuple(MaskCost(loss, (3, 2), 70, loss, 6, 2, 5) for loss in ("bce", "focal")),
    "point_sample": (SAMPLES, PointSample("maps", (6, 1, 8, 8), masks=True, points=9)),
    "model": (Model(MASK2FORMER_R50, size=(32, 48)),),
}
GPU_CASES: dict[str, tuple[Case, ...]] = {
    **CASES,
    "ms_deform_attn": tuple(
        replace(case, passes=(FORWARD, BACKWARD))
        for case in (
            ATTENTION,
            replace(ATTENTION, precision=BF16, form=FUSED),
            replace(ATTENTION, precision=ALL_BF16),
        )
    ),
    "mask_criterion": (replace(MASKS, checked_at=32),),
    "model": tuple(Model(MASK2FORMER_R50, 1, dtype, (32, 48)) for dtype in ("fp32", "bf16")),
}


def suite(operator: str) -> Suite:
    """With tiny cases in place of its own, and without what takes seconds to compile."""
    full = next(s for s in all_suites() if s.operator == operator)

    def contenders(case: Any) -> list[Contender]:
        return [contender for contender in full.contenders(case) if not contender.compiles_s]

    return replace(full, cases=CASES[operator], gpu_cases=GPU_CASES[operator], contenders=contenders)


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Mask2Former that takes milliseconds in place of the models of the suite."""

    def make(name: str) -> nn.Module:
        config = Mask2FormerConfig(num_classes=3, num_queries=5, backbone="conv_stem")
        return Mask2Former(config).eval().requires_grad_(False)

    models._model.cache_clear()
    monkeypatch.setattr(models, "random_model", make)
    monkeypatch.setattr(transformers_models, "why_not", lambda: "has no such model")
    yield
    models._model.cache_clear()
