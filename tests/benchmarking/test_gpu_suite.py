"""The GPU benchmark, tried on the CPU: floors, rows, goals, tables, and the command around it."""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.cases import AttentionCase, AttentionInputs
from benchmarks.gpu import GpuPlan, markdown, run_gpu_benchmarks, suite
from benchmarks.gpu.cases import (
    ALL_BF16,
    BF16,
    CASES,
    FP32,
    FUSED,
    JOBS,
    PLAIN,
    Job,
    cast,
    rotation,
)
from benchmarks.gpu.clock import CudaClock
from benchmarks.gpu.contenders import (
    CLASSIC,
    CUDA,
    DETERMINISTIC,
    EAGER,
    TRITON,
    Contender,
    contenders,
)
from benchmarks.gpu.floors import Touched, microseconds, touched, traffic
from benchmarks.gpu.goals import judge
from benchmarks.gpu.report import format_goal, format_row
from tests.benchmarking.scripts import script

TINY = AttentionCase("encoder B=2", 2, None, ((6, 5), (3, 2)), heads=2, channels=8, points=2)
TINY_JOBS = (Job(TINY, FP32, PLAIN), Job(TINY, BF16, FUSED), Job(TINY, ALL_BF16, PLAIN))


def one_head(locations: list[tuple[float, float]]) -> AttentionInputs:
    """One image and head, D = 8, a level of 4 rows and 2 columns, one point for each of the queries."""
    Q = len(locations)
    return AttentionInputs(
        value=torch.zeros(1, 8, 1, 8),
        shapes=((4, 2),),
        locations=torch.tensor(locations).view(1, Q, 1, 1, 1, 2),
        weights=torch.zeros(1, Q, 1, 1, 1),
        reference_points=torch.zeros(1, Q, 1, 2),
        offsets=torch.zeros(1, Q, 1, 1, 1, 2),
        logits=torch.zeros(1, Q, 1, 1, 1),
        grad_output=torch.zeros(1, Q, 8),
    )


def test_floors_by_hand() -> None:
    # the middle of four pixels; the same again; beyond a corner, where one pixel is left; far outside
    inputs = one_head([(0.5, 0.25), (0.5, 0.25), (0.0, 0.0), (9.0, 9.0)])
    reached = touched(inputs)
    assert reached == Touched(corners=4 + 4 + 1, rows=4)
    row, locations, weights, references, out, value = 32, 4 * 8, 4 * 4, 4 * 8, 4 * 32, 8 * 32
    forward = traffic(inputs, PLAIN, False, reached)
    assert forward.device == 4 * row + locations + weights + out
    assert forward.gather == 9 * row
    backward = traffic(inputs, PLAIN, True, reached)
    assert backward.device == 4 * row + 2 * (locations + weights) + out + value
    assert backward.gather == 2 * 9 * row
    assert traffic(inputs, FUSED, False, reached).device == forward.device + references
    narrow = replace(inputs, value=inputs.value.bfloat16(), grad_output=inputs.grad_output.bfloat16())
    assert traffic(narrow, PLAIN, True, reached).gather == 9 * (16 + 32)
    assert traffic(narrow, PLAIN, False, reached).device == 4 * 16 + locations + weights + out // 2
    assert microseconds(3_000_000, 3e12) == 1.0


def test_narrow_inputs_keep_away_from_pixels(rng: torch.Generator) -> None:
    inputs = cast(TINY.inputs(rng), BF16)
    assert inputs.value.dtype == inputs.offsets.dtype == inputs.logits.dtype == torch.bfloat16
    assert inputs.locations.dtype == torch.float32
    extent = torch.tensor([(w, h) for h, w in inputs.shapes])[:, None]
    pixels = inputs.reference_points.double()[:, :, None, :, None] * extent + inputs.offsets.double() - 0.5
    assert (pixels - pixels.round()).abs().min() > 1e-3
    assert cast(TINY.inputs(rng), ALL_BF16).locations.dtype == torch.bfloat16


def test_rotated_inputs_hold_more_than_the_cache(rng: torch.Generator) -> None:
    inputs = TINY.inputs(rng)
    sets = rotation(inputs, PLAIN, cache_bytes=20_000)
    assert sets[0] is inputs
    assert len({of_set.value.data_ptr() for of_set in sets}) == len(sets) > 1
    assert all(torch.equal(of_set.value, inputs.value) for of_set in sets)
    held = sum(
        getattr(s, n).numel() * 4 for s in sets for n in ("value", "locations", "weights", "grad_output")
    )
    assert held >= 3 * 20_000
    assert rotation(inputs, PLAIN, cache_bytes=10) == [inputs]


def test_jobs_cover_every_case_in_both_precisions_and_forms() -> None:
    assert {(j.case.name, j.precision.name, j.form) for j in JOBS} >= {
        (case.name, precision, form)
        for case in CASES
        for precision in ("fp32", "bf16")
        for form in (PLAIN, FUSED)
    }
    assert JOBS[0].case.name == "encoder B=2"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("gpu") / "trial.json"
    lines: list[str] = []
    returned = run_gpu_benchmarks(GpuPlan("cpu", TINY_JOBS, (), budget_s=0.01), path, lines.append)
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(returned))
    assert len(lines) == len(written["rows"]) + len(written["goals"]) + 1
    return written


def test_trial_rows(trial: dict[str, Any]) -> None:
    timed = [row for row in trial["rows"] if "kernel_us" in row]
    assert {"native", "grid_sample", "grid_sample + eager softmax, locations"} <= {
        r["contender"] for r in timed
    }
    assert {row["pass"] for row in timed} == {"forward", "backward"}
    for row in timed:
        assert row["over_floor"] == pytest.approx(row["kernel_us"] / row["floor_us"])
        assert row["floor_us"] == pytest.approx(
            1e6 * row["device_bytes"] / trial["rates"]["copy_bytes_per_s"]
        )
        assert row["timed_by"] == "wall"
        assert row["call_us"] > 0
        assert row["input_sets"] > 1
    reasons = {row["contender"]: row["missing"] for row in trial["rows"] if "missing" in row}
    assert {CUDA, CUDA + DETERMINISTIC, TRITON} <= reasons.keys()
    assert not any("failed" in row or "left_out" in row for row in trial["rows"]), trial["rows"]
    assert {goal["verdict"] for goal in trial["goals"]} == {"not measured"}
    assert {"device", "commit", "versions", "date", "clocks_before", "clocks_after"} <= trial[
        "machine"
    ].keys()


def test_trial_table(trial: dict[str, Any]) -> None:
    text = markdown(trial)
    assert "### encoder B=2, bf16 locations" in text
    assert "- cuda is not usable here: " in text
    tables = [line for line in text.splitlines() if line.startswith("| plain") or line.startswith("| fused")]
    assert len(tables) == sum("missing" not in row for row in trial["rows"])
    assert all(line.count("|") == 10 for line in tables)


def test_time_that_is_up_leaves_rows_out() -> None:
    rows = list(suite.Suite(GpuPlan("cpu", TINY_JOBS, (), deadline_s=0.0)).run())
    assert rows
    assert all(row["left_out"] == "time was up" for row in rows)


def test_wrong_and_broken_contenders_are_told_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    def wrong(inputs: AttentionInputs) -> Any:
        return lambda value, a, b: (value.sum() + a.sum() + b.sum()).expand(inputs.grad_output.shape)

    class Sum:
        runs = 0

        def __call__(self, value: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            out = right(value, a, b)
            out.register_hook(self.wobble)
            return out

        def wobble(self, grad: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return grad * (1 + 1e-6 * self.runs)

    def right(value: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return contenders(TINY_JOBS[0], value.device)[-1].bind(inputs)(value, a, b)

    chosen = [
        Contender("broken", lambda inputs: broken),
        Contender("wrong", wrong),
        Contender("wobbling", lambda inputs: Sum(), forward=False, repeatable=True),
    ]
    inputs = TINY.inputs(torch.Generator().manual_seed(0))
    monkeypatch.setattr(suite, "contenders", lambda job, device: chosen)
    rows = list(suite.Suite(GpuPlan("cpu", TINY_JOBS[:1], ())).run())
    assert [row["contender"] for row in rows] == ["broken", "broken", "wrong", "wrong", "wobbling"]
    assert rows[0]["failed"] == "RuntimeError: no kernel image"
    assert "relative error" in rows[2]["failed"]
    assert "two runs differ" in rows[4]["failed"]
    assert not any("kernel_us" in row for row in rows)
    assert "FAILED: " in format_row(rows[0])


def row(contender: str, us: float, pass_: str = "forward", form: str = PLAIN, **more: Any) -> dict[str, Any]:
    base = {"case": "encoder B=2", "dtype": "fp32", "form": form, "pass": pass_, "contender": contender}
    return {**base, "kernel_us": us, **more}


def test_goals_are_judged_on_the_rows() -> None:
    rows = [
        row(CUDA, 200.0),
        row(CLASSIC, 700.0),
        row(CUDA, 400.0, "backward"),
        row(CLASSIC, 1000.0, "backward"),
        row(CUDA + DETERMINISTIC, 500.0, "backward"),
        row(CUDA, 210.0, form=FUSED),
        row(CLASSIC + EAGER, 250.0, form=FUSED),
        row(CUDA, 9.0, case="decoder B=2", call_us=16.0),
        row(TRITON, 20.0, case="decoder B=2"),
        row(TRITON, 210.0),
    ]
    found = {goal["goal"]: (goal["measured"], goal["verdict"]) for goal in judge(rows)}
    assert found["encoder B=2 forward, fp32"] == (200.0, "met")
    assert found["encoder B=2 forward, fp32, classic kernel / ours"] == (3.5, "met")
    assert found["encoder B=2 backward, fp32, classic kernel / ours"] == (2.5, "missed")
    assert found["encoder B=2 backward, fp32, deterministic / default"] == (1.25, "met")
    assert found["encoder B=2 forward, fp32, saved by the fused form"] == (40.0, "missed")
    assert found["decoder B=2 forward, fp32"] == (9.0, "met")
    assert found["decoder B=2 forward, fp32, call from Python with autograd"] == (16.0, "missed")
    assert found["Triton / CUDA, forward, worst case (decoder B=2, fp32, plain)"] == (
        pytest.approx(20 / 9),
        "missed",
    )
    assert found["Triton / CUDA, backward, worst case"] == (None, "not measured")
    assert found["encoder B=2 forward, bf16"] == (None, "not measured")
    assert "goal not measured: Triton / CUDA, backward, worst case: at most 1.5 x" in map(
        format_goal, judge(rows)
    )


def python(code: str) -> Any:
    return lambda run: [run_script.Command([sys.executable, "-c", code])]


run_script = script("run")


def test_every_step_runs_and_is_recorded(tmp_path: Path, trial: dict[str, Any]) -> None:
    run = run_script.Run("cpu", 1.0, tmp_path / "work")

    def skipped(of: Any) -> Any:
        raise run_script.Skip("not here")

    steps = [
        run_script.Step("wrong", python("print('told why'); raise SystemExit(3)"), 20),
        run_script.Step("slow", python("import time; time.sleep(60)"), 0.5),
        run_script.Step("absent", skipped, 1, required=False),
        run_script.Step("tests", python("print('=== 7 passed, 1 skipped in 0.1s ===')"), 20),
        run_script.Step("broken", lambda of: 1 / 0, 1),
    ]
    run_script.perform(run, steps)
    assert [entry["state"] for entry in run.steps] == ["failed", "failed", "skipped", "passed", "failed"]
    assert [entry.get("why") for entry in run.steps] == [
        "exit code 3",
        "time was up after 0 s",
        "not here",
        None,
        "ZeroDivisionError: division by zero",
    ]
    assert run.steps[0]["output"] == "told why\n"
    assert run.steps[3]["tests"].startswith("7 passed, 1 skipped")
    assert not run_script.succeeded(run.steps)
    assert run_script.succeeded(run.steps[2:4])
    run.report.write_text(json.dumps(trial))
    as_json, table = run_script.write(run, "2026-01-01-GPU", tmp_path / "results")
    written = json.loads(as_json.read_text())
    assert [entry["step"] for entry in written["steps"]] == ["wrong", "slow", "absent", "tests", "broken"]
    assert written["rows"] == trial["rows"]
    assert "| wrong | failed |" in table.read_text()
    assert "### encoder B=2, fp32" in table.read_text()


def test_a_run_that_measured_nothing_still_leaves_its_result(tmp_path: Path) -> None:
    run = run_script.Run("cpu", 1.0, tmp_path / "work")
    as_json, table = run_script.write(run, "nothing", tmp_path)
    assert json.loads(as_json.read_text())["steps"] == []
    assert "| step |" in table.read_text()


def test_sanitizer_output_is_read() -> None:
    assert run_script.findings("========= ERROR SUMMARY: 0 errors\n") == ""
    assert run_script.findings("========= ERROR SUMMARY: 3 errors\n") == "3 errors"
    hazards = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert run_script.findings(hazards) == "2 hazards displayed (2 errors, 0 warnings)"
    assert run_script.findings("") == "compute-sanitizer printed no summary"


def test_sanitized_cases_are_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sanitize = script("sanitize")
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--device", "cpu", "--backend", "native"])
    assert sanitize.main() == 0
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--device", "cpu", "--backend", "cuda"])
    assert sanitize.main() == 1  # nothing ran


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


class FakeGraph:
    replays = 0

    def capture_begin(self) -> None: ...

    def capture_end(self) -> None: ...

    def replay(self) -> None:
        FakeGraph.replays += 1
        time.sleep(1e-4)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as the clock uses it, without a device."""
    properties = SimpleNamespace(L2_cache_size=2**20)
    for name, fake in {
        "get_device_properties": lambda device: properties,
        "Stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "synchronize": lambda: None,
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_a_graph_is_replayed_or_the_row_says_why_not(fake_cuda: None) -> None:
    clock = CudaClock(torch.device("cuda"))
    assert clock.cache_bytes == 2**20
    made: list[int] = []
    with clock.context():
        before = FakeGraph.replays
        captured = clock.kernel([lambda: made.append(0), lambda: made.append(1)], 0.01)
        assert captured.how == "graph"
        assert FakeGraph.replays - before == captured.samples + 2  # two to warm up
        assert made == [0, 1, 0] + 10 * [0, 1]  # twice, once for an estimate, then 20 captured

        def uncapturable() -> None:
            if not gc.isenabled():
                raise RuntimeError("operation not permitted when stream is capturing")

        loose = clock.kernel([uncapturable], 0.01)
        assert loose.how == "events"
        assert loose.note.startswith("not captured: RuntimeError: operation not permitted")
        assert gc.isenabled()
        assert clock.call(uncapturable, 10.0) > 0
        assert clock.step(uncapturable, 0.01).how == "wall"
        assert clock.works()
