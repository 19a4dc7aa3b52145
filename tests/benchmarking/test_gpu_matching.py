"""The matching part of the GPU benchmark, tried on the CPU: our kernels run on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import FORWARD_BACKWARD, AssignmentCase, DetectionCase
from benchmarks.gpu import GpuPlan, markdown, matching_suite, run_gpu_benchmarks
from benchmarks.gpu.contenders import CUDA, TRITON
from benchmarks.gpu.goals import judge
from benchmarks.gpu.matching_cases import (
    COCO_COUNTS,
    MATCHING_JOBS,
    QUICK_MATCHING_JOBS,
    MatchingJob,
)
from benchmarks.gpu.matching_contenders import (
    AUCTION,
    BIRDER,
    OFFICIAL,
    SCIPY,
    TORCH_LINEAR_ASSIGNMENT,
    MatchingContender,
    birder_operator,
    matching_contenders,
    padded_match,
    rule,
)
from benchmarks.gpu.matching_goals import STEP
from benchmarks.gpu.work import least_work
from detr_fast.ops import linear_assignment
from detr_fast.ops.box_match_cost import OPERATOR as COST
from detr_fast.ops.linear_assignment import OPERATOR as ASSIGNMENT
from tests.benchmarking.scripts import script
from tests.ops.simulated import simulated

MATCHER = DetectionCase("L=2", 2, 12, (3, 5), 2, classes=5, operator="matcher")
CRITERION = replace(MATCHER, operator="criterion", passes=(FORWARD_BACKWARD,))
TINY = (
    MatchingJob(MATCHER),
    MatchingJob(CRITERION),
    MatchingJob(AssignmentCase(9, 4, "clustered", images=3)),
)


@pytest.fixture
def host() -> Iterator[None]:
    """The CUDA kernels of both operators serve the CPU."""
    with ExitStack() as stack:
        for operator in (COST, ASSIGNMENT):
            stack.enter_context(simulated(operator, "host"))
        yield


def test_jobs_are_the_cases_that_goals_are_set_for() -> None:
    named = [(job.case.operator, job.name) for job in MATCHING_JOBS]
    names = set(named)
    assert len(
        {(*name, job.dtype, job.pass_) for name, job in zip(named, MATCHING_JOBS, strict=True)}
    ) == len(named)
    assert sum(operator == "linear_assignment" for operator, _ in names) == 2 * 18
    for operator in ("matcher", "criterion"):
        assert {name for of, name in names if of == operator} == {
            STEP,
            "L=7 B=16 Q=900",
            "Mask2Former L=10 B=16 Q=100",
        }
    assert {job.case.images for job in MATCHING_JOBS if isinstance(job.case, AssignmentCase)} == {16, 96}
    assert ("linear_assignment", "900x300 early B=16") in names
    assert sum(COCO_COUNTS) == 7 * len(COCO_COUNTS)
    assert max(COCO_COUNTS) == 60
    assert {job.case.operator for job in QUICK_MATCHING_JOBS} == {
        "matcher",
        "criterion",
        "linear_assignment",
        "mask_criterion",
        "class_loss",
        "box_loss",
        "model",
    }


def test_floors_by_hand(rng: torch.Generator) -> None:
    assignment = TINY[2].case.inputs(rng)
    assert least_work(assignment, "forward").bytes == 3 * 4 * 9 * 4 + 3 * 4 * 8
    detection = TINY[0].case.inputs(rng)
    predictions, targets = 2 * 2 * 12 * (5 + 4) * 4, 8 * (8 + 16)
    assert least_work(detection, "forward").bytes == predictions + targets + 2 * 8 * 8
    assert least_work(detection, FORWARD_BACKWARD).bytes == 2 * predictions + targets


def test_trial(host: None) -> None:
    report = run_gpu_benchmarks(GpuPlan("cpu", (), TINY, budget_s=0.01), echo=lambda line: None)
    rows = report["rows"]
    assert not any("failed" in row or "left_out" in row for row in rows), rows
    timed = {(row["operator"], row["contender"]) for row in rows if "kernel_us" in row}
    assert timed >= {(job.case.operator, CUDA) for job in TINY}
    assert timed >= {("linear_assignment", CUDA + AUCTION), ("linear_assignment", SCIPY)}
    assert timed >= {("matcher", OFFICIAL), ("criterion", OFFICIAL)}
    missing = {row["contender"]: row["missing"] for row in rows if "missing" in row}
    assert {TRITON, TORCH_LINEAR_ASSIGNMENT, BIRDER} <= missing.keys()
    for row in rows:
        if "kernel_us" in row:
            assert row["over_floor"] == pytest.approx(row["kernel_us"] / row["floor_us"])
            assert row["wall_us"] > 0
    text = markdown(report)
    assert f"- {BIRDER} is not usable here: needs a CUDA device" in text
    for operator in ("linear_assignment", "matcher", "criterion"):
        assert f"### {operator}\n" in text
    lines = [line for line in text.splitlines() if line.startswith(("| L=2 |", "| 9x4 "))]
    assert len(lines) == sum("kernel_us" in row for row in rows)
    assert all(line.count("|") == 8 for line in lines)


def test_padded_costs_give_the_optimum(rng: torch.Generator) -> None:
    inputs = TINY[0].case.inputs(rng)

    def solve(costs: Tensor) -> Tensor:
        problems, targets, _ = costs.shape
        return linear_assignment(costs.flatten(0, 1), [targets] * problems).view(problems, targets)

    contender = matching_contenders(TINY[0], torch.device("cpu"))[0]
    expected = rule(TINY[0]).expected(inputs, "forward")
    rule(TINY[0]).verify(expected, contender.canonical(padded_match(solve, inputs)(), inputs))


def test_wrong_results_and_time_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(inputs: Any) -> Any:
        return lambda: torch.zeros(len(inputs.sizes) * inputs.sizes[0])

    right = matching_contenders(TINY[2], torch.device("cpu"))[0]
    chosen = [MatchingContender("wrong", twice, right.canonical)]
    monkeypatch.setattr(matching_suite, "matching_contenders", lambda job, device: chosen)
    report = run_gpu_benchmarks(GpuPlan("cpu", (), TINY[2:]), echo=lambda line: None)
    assert "a query is used twice" in report["rows"][0]["failed"]
    plan = GpuPlan("cpu", (), TINY[2:], deadline_s=0.0)
    assert run_gpu_benchmarks(plan, echo=lambda line: None)["rows"][0]["left_out"] == "time was up"


def row(operator: str, case: str, contender: str, kernel_us: float, wall_us: float = 1.0) -> dict[str, Any]:
    return {
        "operator": operator,
        "case": case,
        "dtype": "fp32",
        "form": "",
        "pass": "forward",
        "contender": contender,
        "kernel_us": kernel_us,
        "wall_us": wall_us,
    }


def test_goals_are_judged_on_the_rows() -> None:
    a, b = "900x300 early B=16", "100x7 random B=16"
    rows = [
        row("linear_assignment", a, CUDA, 1000.0),
        row("linear_assignment", a, TRITON, 9000.0),
        row("linear_assignment", a, BIRDER, 8000.0),
        row("linear_assignment", a, TORCH_LINEAR_ASSIGNMENT, 9000.0),
        row("linear_assignment", a, SCIPY, 300000.0),
        row("linear_assignment", b, CUDA, 10.0),
        row("linear_assignment", b, BIRDER, 60.0),
        row("linear_assignment", b, TORCH_LINEAR_ASSIGNMENT, 40.0),
        row("linear_assignment", b, SCIPY, 510.0),
        row("matcher", STEP, CUDA, 600.0),
        row("criterion", STEP, CUDA, 900.0, 2500.0),
        row("criterion", STEP, OFFICIAL, 50000.0, 50000.0),
    ]
    found = {goal["goal"]: (goal["measured"], goal["verdict"]) for goal in judge(rows)}
    worst = f"worst case ({b}, of 2)"
    assert found[f"assignment B=16, best peer on the device / ours, {worst}"] == (4.0, "missed")
    assert found[f"assignment B=16, scipy with copies / ours, {worst}"] == (51.0, "met")
    assert found["assignment B=96, scipy with copies / ours, worst case"] == (None, "not measured")
    assert found[f"assignment {a}"] == (1000.0, "met")
    assert found[f"matcher {STEP}"] == (600.0, "missed")
    assert found[f"criterion {STEP}, forward and backward, wall"] == (2500.0, "met")
    assert found[f"criterion {STEP}, {OFFICIAL} / ours, wall"] == (20.0, "met")
    # matching does not enter the goals of attention
    assert found["Triton / CUDA, forward, worst case"] == (None, "not measured")


def test_sanitized_cases_are_right_on_the_host(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sanitize = script("sanitize")
    monkeypatch.setattr(sanitize, "ASSIGNMENTS", sanitize.ASSIGNMENTS[:4])
    results = dict(sanitize.matching("cpu", ["cuda"]))
    assert max(results.values()) <= 1e-4, results
    assert any("auction infeasible" in name for name in results)
    assert any("focal float16" in name for name in results)
    assert any("non-finite" in name for name in results)


def test_peers_are_installed_from_their_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu_run = script("run")
    run = gpu_run.Run("cpu", 1.0, tmp_path / "work")
    monkeypatch.setenv("DETR_FAST_PEERS", str(tmp_path))
    monkeypatch.setattr(gpu_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(gpu_run.Skip, match="none to install"):
        gpu_run.peers(run)
    for name in ("torch_linear_assignment-0.1.0-py3-none-any.whl", "birder-0.8.4-py3-none-any.whl"):
        (tmp_path / name).touch()
    lock = tmp_path / "work" / "extensions" / "birder_assignment" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    commands = gpu_run.peers(run)
    assert [Path(command.argv[-1]).name[:6] for command in commands[:2]] == ["torch_", "birder"]
    assert "birder_operator" in commands[2].argv[-1]
    assert not lock.exists()
    (tmp_path / "torch_ms_deform_attn-0.1.1.tar.gz").touch()
    assert len(gpu_run.peers(run)) == 4


def test_birder_is_compiled_from_its_package_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "birder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('what the kernel does not need')")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    try:
        birder_operator.cache_clear()
        assert birder_operator() == (None, "No module named 'birder'")
        monkeypatch.syspath_prepend(str(tmp_path))
        birder_operator.cache_clear()
        operator, reason = birder_operator()  # its sources are not there
        assert operator is None
        assert reason
        lock = tmp_path / "extensions" / "birder_assignment" / "lock"
        lock.touch()
        birder_operator.cache_clear()
        assert "its compilation was stopped" in (birder_operator()[1] or "")
    finally:
        birder_operator.cache_clear()
