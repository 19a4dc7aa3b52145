"""The steps of `make gpu` without a GPU, and its rehearsal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, steps
from benchmarks.steps import Command, Run, Skip, Step
from detr_fast.ops import OPERATORS
from tests.ops import sanitized
from tests.ops.test_contract import CONTRACTS


def python(code: str) -> Any:
    return lambda run: [Command([sys.executable, "-c", code])]


def skipping(run: Run) -> list[Command]:
    raise Skip("not here")


def states(run: Run) -> list[str]:
    return [entry["state"] for entry in run.steps]


def test_every_step_runs_and_is_recorded(tmp_path: Path) -> None:
    run = Run("tests", "cpu", 5.0, tmp_path)
    run.perform(
        [
            [Step("wrong", python("print('told why'); raise SystemExit(3)"), 20)],
            [Step("absent", skipping, 1, required=False), Step("broken", lambda of: 1 / 0, 1)],
            [Step("tests", python("print('=== 7 passed, 1 skipped in 0.1s ===')"), 20)],
        ]
    )
    assert states(run) == ["failed", "skipped", "failed", "passed"]
    assert [entry.get("why") for entry in run.steps] == [
        "exit code 3",
        "not here",
        "ZeroDivisionError: division by zero",
        None,
    ]
    assert run.steps[0]["output"] == "told why\n"
    assert run.steps[3]["tests"].startswith("7 passed, 1 skipped")
    assert not steps.succeeded(run.steps)
    assert steps.succeeded(run.steps[1:4:2])
    assert "== wrong\ntold why\n" in (tmp_path / "tests.log").read_text()


def test_a_step_leaves_the_later_ones_their_time(tmp_path: Path) -> None:
    run = Run("tests", "cpu", 21 / 60, tmp_path)
    slow = python("import time; time.sleep(60)")
    run.perform([[Step("slow", slow, 1)], [Step("later", python(""), 20)]])
    assert states(run) == ["failed", "passed"]
    assert run.steps[0]["why"] == "time was up after 1 s"
    again = Run("tests", "cpu", 1 / 60, tmp_path)  # what has passed needs no time any more
    again.perform([[Step("slow", python(""), 1)], [Step("later", python(""), 20)]])
    assert states(again) == ["passed", "passed"]


def test_a_part_goes_on_where_an_earlier_call_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = python(f"open({str(tmp_path / 'calls')!r}, 'a').write('x')")
    rounds = [[Step("build", count, 1)], [Step("good", count, 1)], [Step("bad", python("1 / 0"), 1)]]
    for expected in ("xx", "xxx"):
        run = Run("tests", "cpu", 5.0, tmp_path)
        run.perform(rounds)
        assert (tmp_path / "calls").read_text() == expected  # the build is made sure of every time
        assert sorted(states(run)) == ["failed", "passed", "passed"]
    monkeypatch.setattr(steps, "fingerprint", lambda: "other sources")
    Run("tests", "cpu", 5.0, tmp_path).perform(rounds)
    assert (tmp_path / "calls").read_text() == "xxxxx"


def test_parts_are_joined_and_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setattr(steps.machine, "commit", lambda: "abc123")
    for part in gpu.PARTS:
        Run(part, "cpu", 5.0, tmp_path).perform([[Step(f"of {part}", python("print(1)"), 1)]])
        paths = gpu.join(tmp_path, "2026-01-01-GPU", tmp_path / "results")
        steps.hand_out(*paths)
    assert len(list(out.iterdir())) == 8
    content = json.loads((out / "2026-01-01-GPU.json").read_text())
    assert content["commit"] == "abc123"
    assert [entry["step"] for entry in content["steps"]] == [f"of {part}" for part in gpu.PARTS]
    table = (out / "2026-01-01-GPU.md").read_text()
    assert all(f"| {part} | of {part} | passed |" in table for part in gpu.PARTS)
    monkeypatch.setattr(steps, "fingerprint", lambda: "other sources")
    Run("tests", "cpu", 5.0, tmp_path).perform([[Step("of tests", python("print(1)"), 1)]])
    _, changed = gpu.join(tmp_path, "2026-01-01-GPU", tmp_path / "results")
    assert "Of other sources, left out: sanitize, bench." in changed.read_text()


def test_a_copy_without_git_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.machine, "__file__", str(tmp_path / "detr_fast" / "machine.py"))
    assert steps.machine.commit() is None
    monkeypatch.setenv("DETR_FAST_COMMIT", "abc123")
    assert steps.machine.commit() == "abc123"


def test_parts_are_planned_within_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--plan"]) == 0
    printed = capsys.readouterr().out
    for part, rounds in gpu.PARTS.items():
        minutes = sum(map(steps.predicted_s, rounds)) / 60
        assert f"== plan: {part}, {minutes:.1f} of 9 minutes: build" in printed
        assert 0 < minutes < gpu.MINUTES < 10
    with pytest.raises(SystemExit):
        gpu.main(["test"])
    assert "PART: expected some of tests, sanitize, bench; got test" in capsys.readouterr().err


def test_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of `make gpu` on the CPU: imports, options, and what its expressions select."""
    first, (memcheck, *_) = gpu.PARTS["sanitize"]
    monkeypatch.setitem(gpu.PARTS, "sanitize", (first, (memcheck,)))  # its neighbours differ in a word
    monkeypatch.setenv("DETR_FAST_PEERS", str(tmp_path))
    monkeypatch.setattr(steps.torch.cuda, "is_available", lambda: False)
    code = gpu.main(["--device", "cpu", "--work", str(tmp_path)])
    (joined,) = tmp_path.glob("*-rehearsal.json")
    content = json.loads(joined.read_text())
    assert code == 0, content["steps"]
    counted = {entry["step"]: entry["tests"] for entry in content["steps"] if "tests" in entry}
    collected = {step: int(text.partition("/")[0]) for step, text in counted.items()}
    assert collected.keys() == {"large", "contract", "device", "golden"}
    assert 2 * len(CONTRACTS) < collected["contract"] < 2000
    references = [
        line for line in (tmp_path / "contract.log").read_text().splitlines() if "reference-cuda" in line
    ]
    assert 0 < len(references) < collected["contract"] / 4
    assert {"ms_deform_attn", "matcher", "model"} <= {row["operator"] for row in content["rows"]}
    assert not [row for row in content["rows"] if "failed" in row]
    assert content["machine"]["commit"] == content["commit"]


def test_large_tests_that_are_skipped_have_not_run() -> None:
    assert gpu.skipped("16 passed, 2 skipped in 30.1s") == "2 did not run"
    assert gpu.skipped("18 passed in 30.1s") == ""


def test_sanitizer_output_is_read() -> None:
    assert gpu.findings("========= ERROR SUMMARY: 0 errors\n") == ""
    assert gpu.findings("========= ERROR SUMMARY: 3 errors\n") == "3 errors"
    hazards = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert gpu.findings(hazards) == "2 hazards displayed (2 errors, 0 warnings)"
    assert gpu.findings("") == "compute-sanitizer printed no summary"


def test_the_sanitizer_is_found_in_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("sanitize", "cuda", 5.0, tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    with pytest.raises(Skip, match="no compute-sanitizer in a CUDA toolkit"):
        gpu.sanitize("memcheck", run)
    tool = tmp_path / "packages" / "nvidia" / "cu13" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch(mode=0o755)
    (command,) = gpu.sanitize("memcheck", run)
    assert command.argv[:3] == [str(tool), "--tool", "memcheck"]


def test_peers_are_installed_from_their_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run("bench", "cpu", 1.0, tmp_path / "work")
    monkeypatch.setenv("DETR_FAST_PEERS", str(tmp_path))
    monkeypatch.setattr(gpu, "importable", lambda name: False)
    with pytest.raises(Skip, match=r"none in .*DETR_FAST_PEERS"):
        gpu.install(gpu.PEERS, run)
    for name in ("torch_linear_assignment-0.1.0", "birder-0.8.4"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    lock = tmp_path / "work" / "extensions" / "birder_assignment" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()

    def archives(commands: Sequence[Command]) -> list[str]:
        return [Path(command.argv[-1]).name.partition("-")[0] for command in commands[:-1]]

    commands = gpu.install(gpu.PEERS, run)
    assert archives(commands) == ["torch_linear_assignment", "birder"]
    assert "birder_operator" in commands[-1].argv[-1]
    assert not lock.exists()
    (tmp_path / "torch_ms_deform_attn-0.1.1.tar.gz").touch()
    (run.packages / "birder").mkdir(parents=True)  # in an earlier call
    commands = gpu.install(gpu.PEERS, run)
    assert archives(commands) == ["torch_linear_assignment", "torch_ms_deform_attn"]
    assert commands[1].environment is not None
    assert commands[1].environment["FORCE_CUDA"] == "1"


def test_sanitized_cases_are_right_on_the_cpu() -> None:
    served = [
        name for name, why in OPERATORS[0].explain(torch.device("cpu"), torch.float32).items() if not why
    ]
    errors = dict(sanitized.errors("cpu", 2000, served))
    assert max(errors.values()) <= 1, errors
    assert {name.split()[0] for name in errors} >= {operator.name for operator in OPERATORS}
    assert sanitized.main(["--device", "cpu", "--backend", "cuda"]) == 1  # nothing ran
