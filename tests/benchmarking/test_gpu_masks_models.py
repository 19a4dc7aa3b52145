"""The mask, loss and model part of the GPU benchmark, tried on the CPU at tiny sizes."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cases import (
    FORWARD,
    FORWARD_BACKWARD,
    DetectionCase,
    MaskCase,
    MaskCostCase,
    PointSampleCase,
)
from benchmarks.contract import ContractFailed
from benchmarks.goals import OFFICIAL_MASK2FORMER
from benchmarks.gpu import GpuPlan, markdown, model_cases, run_gpu_benchmarks
from benchmarks.gpu.contenders import CUDA, TRITON
from benchmarks.gpu.loss_cases import BOXES, LossCase
from benchmarks.gpu.matching_cases import MASK_JOBS, MATCHING_JOBS, MODEL_JOBS, MatchingJob
from benchmarks.gpu.matching_contenders import PLAIN_PYTORCH, TRANSFORMERS, matching_contenders
from benchmarks.gpu.matching_suite import Rates
from benchmarks.gpu.model_cases import MODEL, ModelCase
from benchmarks.gpu.work import Work, least_work
from benchmarks.peers.models import DEFORMABLE_DETR_R50, MASK2FORMER_R50
from detr_fast.models import Mask2Former, Mask2FormerConfig

DETECTION = DetectionCase("L=2", 2, 12, (3, 5), 2, classes=5)
MASKS = MaskCase("B=2", (2, 3), queries=6, layers=2, classes=5, size=32)
COSTS = MaskCostCase("L=2 B=2", (2, 3), 20, queries=6, layers=2, classes=5)
SAMPLES = PointSampleCase("rows", (6, 1, 8, 8), rows=4, points=9, passes=(FORWARD_BACKWARD,))
TINY = (
    MatchingJob(MASKS, replace(MASKS, size=16)),
    MatchingJob(COSTS),
    MatchingJob(SAMPLES),
    MatchingJob(PointSampleCase("maps", (6, 1, 8, 8), masks=True, points=9)),
    *(MatchingJob(LossCase(DETECTION, kind)) for kind in ("softmax", "focal", BOXES)),
    *(MatchingJob(ModelCase(MASK2FORMER_R50, 1, dtype, (32, 48))) for dtype in ("fp32", "bf16")),
)


def small_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = Mask2FormerConfig(num_classes=3, num_queries=5, backbone="conv_stem")
    return Mask2Former(config).eval().requires_grad_(False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    model_cases._model.cache_clear()
    monkeypatch.setattr(model_cases, "our_model", small_model)
    yield
    model_cases._model.cache_clear()


def test_trial(small: None) -> None:
    report = run_gpu_benchmarks(GpuPlan("cpu", (), TINY, budget_s=0.01), echo=lambda line: None)
    rows = report["rows"]
    assert not any("failed" in row or "left_out" in row for row in rows), rows
    timed = {(row["operator"], row["contender"]) for row in rows if "kernel_us" in row}
    operators = {job.case.operator for job in TINY}
    assert timed >= {(operator, "native") for operator in operators}
    assert timed >= {
        ("mask_criterion", OFFICIAL_MASK2FORMER),
        ("mask_match_cost", OFFICIAL_MASK2FORMER),
        ("mask_match_cost", "batched PyTorch"),
        ("point_sample", "grid_sample"),
        ("class_loss", PLAIN_PYTORCH),
        ("box_loss", PLAIN_PYTORCH),
    }
    missing = {(row["operator"], row["contender"]) for row in rows if "missing" in row}
    assert missing >= {(operator, TRITON) for operator in operators}
    assert missing >= {("mask_criterion", CUDA), ("model", CUDA)}
    assert ("point_sample", CUDA) not in missing  # there is none to miss
    for row in rows:
        if "kernel_us" in row:
            assert row["over_floor"] == pytest.approx(row["kernel_us"] / row["floor_us"])
    text = markdown(report)
    assert all(f"### {operator}\n" in text for operator in operators)
    assert "| maps, forward | native |" in text
    assert f"| {MASK2FORMER_R50} 32x48 B=1, bf16 | native |" in text


def test_floors_by_hand(rng: torch.Generator) -> None:
    masks = MASKS.inputs(rng)
    predictions, targets = 4 * 2 * 2 * 6 * (6 + 8 * 8), 5 * (8 + 16 + 32 * 32)
    assert least_work(masks, FORWARD).bytes == predictions + targets
    assert least_work(masks, FORWARD_BACKWARD).bytes == 2 * predictions + targets
    costs, pairs = least_work(COSTS.inputs(rng), FORWARD), 2 * 5 * 6
    read = 4 * 2 * 2 * 6 * (6 + 20) + 5 * 8 + 4 * 2 * 5 * 20
    assert costs == Work(read + 4 * pairs, 2 * 2 * pairs * 20)
    samples, points = SAMPLES.inputs(rng), 4 * 9
    # fewer values are read than the maps have
    assert least_work(samples, FORWARD).bytes == min(4 * 64 * 4, 4 * 4 * points) + 8 * points + 4 * points
    assert least_work(samples, FORWARD_BACKWARD).bytes > least_work(samples, FORWARD).bytes
    losses = LossCase(DETECTION, BOXES).inputs(rng)
    assert least_work(losses, FORWARD_BACKWARD).bytes == 2 * 4 * 2 * 2 * 12 * 4 + 8 * 16 + 2 * 8 * 8
    rates = Rates(1e6, {"fp32": 1e6, "bf16": 1e3})
    assert rates.floor_us(Work(2, 5, "bf16")) == pytest.approx(5000.0)
    assert rates.floor_us(Work(20, 5)) == pytest.approx(20.0)
    with pytest.raises(TypeError, match="no floor is known for int"):
        least_work(3, FORWARD)


def test_operations_of_a_model_are_counted(small: None, rng: torch.Generator) -> None:
    inputs = [ModelCase(MASK2FORMER_R50, images, "fp32", (32, 48)).inputs(rng) for images in (1, 2)]
    one, two = (least_work(x, FORWARD) for x in inputs)
    assert 0 < one.flops < two.flops <= 2 * one.flops
    assert one.unit == "tf32"
    assert least_work(replace(inputs[0], dtype="bf16"), FORWARD).bytes == one.bytes // 2


def test_a_wrong_model_is_told(small: None, rng: torch.Generator) -> None:
    inputs = ModelCase(MASK2FORMER_R50, 1, "fp32", (32, 48)).inputs(rng)
    expected = MODEL.expected(inputs, FORWARD)
    MODEL.verify(expected, expected.values)
    with pytest.raises(ContractFailed, match=r"classes: relative error .* over 5e-03"):
        MODEL.verify(expected, {name: 1.1 * value for name, value in expected.values.items()})


def test_a_peer_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, reason in ((None, "import of transformers halted"), ("4.57.1", "transformers 4.57.1: ")):
        module = installed and SimpleNamespace(__version__=installed)
        monkeypatch.setitem(sys.modules, "transformers", module)
        found = {c.name: c.missing for c in matching_contenders(MODEL_JOBS[0], torch.device("cpu"))}
        assert {CUDA, TRITON, "native", TRANSFORMERS} == found.keys()
        assert (found[TRANSFORMERS] or "").startswith(reason)


def test_jobs_are_those_of_the_family() -> None:
    models = {(job.case.name, job.dtype) for job in MODEL_JOBS}
    assert models == {
        (f"{model} 800x1066 B={images}", dtype)
        for model in (DEFORMABLE_DETR_R50, MASK2FORMER_R50)
        for images in (1, 2)
        for dtype in ("fp32", "bf16")
    }
    assert {job.name for job in MASK_JOBS if job.case.operator == "mask_criterion"} == {
        "B=2 Q=100 1024x1024",
        "L=10 B=16 Q=100 1024x1024",
    }
    assert {"mask_match_cost", "point_sample", "class_loss", "box_loss"} <= {
        job.case.operator for job in MATCHING_JOBS
    }
