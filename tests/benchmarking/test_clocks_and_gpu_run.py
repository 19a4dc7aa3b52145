"""The clocks, without a GPU, and the steps of `make gpu`."""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_run, sanitize
from benchmarks.clocks import CudaClock, interleaved
from benchmarks.report import run_benchmarks
from benchmarks.runner import Plan, Runner
from detr_fast.machine import torch_threads
from detr_fast.ops import OPERATORS
from tests.benchmarking.conftest import TINY


def test_interleaved_samples_alternate_and_count() -> None:
    calls: list[str] = []

    def slow(name: str) -> None:
        calls.append(name)
        time.sleep(0.06)

    timing = interleaved(lambda: slow("a"), lambda: slow("b"), (0.06, 0.06), budget_s=0, min_rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert timing["rounds"] == 2
    assert timing["ours_ms"] >= 60
    assert timing["peer_ms"] >= 60
    assert timing["ratio"] == timing["peer_ms"] / timing["ours_ms"]


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    list(Runner(Plan(threads=(before + 1,), budget_s=0, patience_s=0), [TINY["linear_assignment"]]).run())
    assert torch.get_num_threads() == before


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
        assert FakeGraph.replays - before == len(captured.samples) + 2  # two to warm up
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


def python(code: str) -> Any:
    return lambda run: [gpu_run.Command([sys.executable, "-c", code])]


def test_every_step_runs_and_is_recorded(tmp_path: Path) -> None:
    run = gpu_run.Run("cpu", 5.0, tmp_path / "work")

    def skipped(of: Any) -> Any:
        raise gpu_run.Skip("not here")

    steps = [
        gpu_run.Step("wrong", python("print('told why'); raise SystemExit(3)"), 20),
        gpu_run.Step("slow", python("import time; time.sleep(60)"), 0.5),
        gpu_run.Step("absent", skipped, 1, required=False),
        gpu_run.Step("tests", python("print('=== 7 passed, 1 skipped in 0.1s ===')"), 20),
        gpu_run.Step("broken", lambda of: 1 / 0, 1),
    ]
    gpu_run.perform(run, steps)
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
    assert not gpu_run.succeeded(run.steps)
    assert gpu_run.succeeded(run.steps[2:4])
    trial = run_benchmarks(Plan(paired=False, budget_s=0), run.report, suites=[TINY["linear_assignment"]])
    as_json, table = gpu_run.write(run, "2026-01-01-GPU", tmp_path / "results")
    written = json.loads(as_json.read_text())
    assert [entry["step"] for entry in written["steps"]] == ["wrong", "slow", "absent", "tests", "broken"]
    assert written["rows"] == trial["rows"]
    assert "| wrong | failed |" in table.read_text()
    assert "### linear_assignment" in table.read_text()


def test_a_run_that_measured_nothing_still_leaves_its_result(tmp_path: Path) -> None:
    run = gpu_run.Run("cpu", 1.0, tmp_path / "work")
    as_json, table = gpu_run.write(run, "nothing", tmp_path)
    assert json.loads(as_json.read_text())["steps"] == []
    assert "| step |" in table.read_text()


def test_sanitizer_output_is_read() -> None:
    assert gpu_run.findings("========= ERROR SUMMARY: 0 errors\n") == ""
    assert gpu_run.findings("========= ERROR SUMMARY: 3 errors\n") == "3 errors"
    hazards = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert gpu_run.findings(hazards) == "2 hazards displayed (2 errors, 0 warnings)"
    assert gpu_run.findings("") == "compute-sanitizer printed no summary"


def test_peers_are_installed_from_their_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_sanitized_cases_are_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "LARGE", 2000)
    served = [
        name for name, why in OPERATORS[0].explain(torch.device("cpu"), torch.float32).items() if not why
    ]
    errors = dict(sanitize.errors("cpu", served))
    assert max(errors.values()) <= 1, errors
    assert {name.split()[0] for name in errors} >= {operator.name for operator in OPERATORS}
    assert sanitize.main(["--device", "cpu", "--backend", "cuda"]) == 1  # nothing ran
