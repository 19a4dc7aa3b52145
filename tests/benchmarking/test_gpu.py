"""`make gpu` without a GPU: its rehearsal, and what its steps come to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_fast import machine
from detr_fast.ops import OPERATORS
from tests.ops import sanitized
from tests.ops.test_contract import CONTRACTS
from tests.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
Gpu = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    """Calls the script, or with `then` bash code after all of its functions, as a rehearsal in tmp_path."""

    def call(*parts: str, then: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        script = SCRIPT
        if then:
            functions = SCRIPT.read_text().partition("[ $# -gt 0 ]")[0].replace('cd "$(dirname "$0")/.."', "")
            script = tmp_path / "then.sh"
            script.write_text(f"{functions}\nexport -f $(compgen -A function)\n{then}\n")
        environment = {
            "PYTHON": sys.executable,
            "DEVICE": "cpu",
            "WORK": str(tmp_path),
            "DETR_FAST_PEERS": str(tmp_path),
            **variables,
        }
        command = ["bash", str(script), *parts]
        environment = {**os.environ, **environment}
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    return call


def test_rehearsal(gpu: Gpu, tmp_path: Path) -> None:
    """Every command of `make gpu` on the CPU: imports, options, and what its expressions select."""
    out = tmp_path / "out"
    out.mkdir()
    done = gpu("tests", "bench", OUT=str(out), DETR_FAST_COMMIT="abc123")
    assert done.returncode == 0, done.stdout + done.stderr
    (table,), (joined,) = out.glob("*-rehearsal.md"), out.glob("*-rehearsal.json")
    steps = [line.split(" | ") for line in table.read_text().splitlines() if " | passed | " in line]
    collected = {step[1]: int(step[4].partition("/")[0]) for step in steps if "collected" in step[4]}
    assert collected.keys() == {"large", "contract", "device", "golden"}
    assert 2 * len(CONTRACTS) < collected["contract"] < 2000
    (log,) = out.glob("contract-*.log")
    references = [line for line in log.read_text().splitlines() if "reference-cuda" in line]
    assert 0 < len(references) < collected["contract"] / 4
    assert [step[1] for step in steps].count("build") == 2
    assert {"peers", "deformops", "attention", "matching", "models"} <= {step[1] for step in steps}
    content: dict[str, Any] = json.loads(joined.read_text())
    assert {"ms_deform_attn", "matcher", "model"} <= {row["operator"] for row in content["rows"]}
    assert not [row for row in content["rows"] if "failed" in row]
    assert "### linear_assignment" in table.read_text()
    again = gpu("tests")
    assert "== contract: passed in 0 s in an earlier call" in again.stdout


def test_steps_are_recorded_and_the_later_ones_run(gpu: Gpu, tmp_path: Path) -> None:
    then = f"""
    part=tests steps={tmp_path}/steps ends=$((SECONDS + 9))
    wrong() {{ echo told why; return 3; }}; slow() {{ sleep 60; }}; good() {{ echo "7 passed in 0.1s"; }}
    export -f wrong slow good
    step wrong 0 wrong; step slow 8 slow; step good 0 good; step good 0 false"""
    done = gpu(then=then)
    states = [line.split(" | ")[1:3] for line in (tmp_path / "steps").read_text().splitlines()]
    assert states == [
        ["wrong", "failed"],
        ["slow", "failed: time was up"],
        ["good", "passed"],
        ["good", "passed"],
    ]
    assert "told why" in done.stdout
    assert "7 passed in 0.1s" in done.stdout


@pytest.mark.parametrize(
    ("printed", "passes"),
    [
        ("========= ERROR SUMMARY: 0 errors", True),
        ("========= ERROR SUMMARY: 3 errors", False),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", False),
        ("no summary", False),
    ],
)
def test_sanitizer_output_is_read(gpu: Gpu, tmp_path: Path, printed: str, passes: bool) -> None:
    tool = tmp_path / "packages" / "nvidia" / "cu13" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\necho '{printed}'\n")
    tool.chmod(0o755)
    done = gpu(then=f"DEVICE=cuda; find_tool() {{ echo {tool}; }}; sanitize memcheck")
    assert (done.returncode == 0) == passes, done.stderr


def test_large_tests_that_are_skipped_have_not_run(gpu: Gpu) -> None:
    for printed, code in (("16 passed, 2 skipped in 30.1s", 1), ("18 passed in 30.1s", 0)):
        assert gpu(then=f"run_tests() {{ echo '{printed}'; }}; run_all_tests 0").returncode == code


def test_peers_are_installed_from_their_archives(gpu: Gpu, tmp_path: Path) -> None:
    archive = tmp_path / "birder-0.8.4-py3-none-any.whl"
    archive.touch()
    then = """importable() { false; }; PYTHON=echo
    install birder "$PEERS"/birder-*.whl
    install torch_linear_assignment "$PEERS"/torch_linear_assignment-*.whl"""
    installed, missing = gpu(then=then).stdout.splitlines()
    assert installed.endswith(f"--target {tmp_path}/packages {archive}")
    assert missing.startswith("torch_linear_assignment: no archive in ")


def test_unknown_parts_are_refused(gpu: Gpu) -> None:
    done = gpu("test")
    assert (done.returncode, done.stdout) == (2, "PART: expected some of tests, sanitize, bench; got test\n")


def test_a_copy_without_git_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "detr_fast" / "machine.py"))
    assert machine.commit() is None
    monkeypatch.setenv("DETR_FAST_COMMIT", "abc123")
    assert machine.commit() == "abc123"


def test_sanitized_cases_are_right_on_the_cpu() -> None:
    served = [
        name for name, why in OPERATORS[0].explain(torch.device("cpu"), torch.float32).items() if not why
    ]
    errors = dict(sanitized.errors("cpu", 2000, served))
    assert max(errors.values()) <= 1, errors
    assert {name.split()[0] for name in errors} >= {operator.name for operator in OPERATORS}
    assert sanitized.main(["--device", "cpu", "--backend", "cuda"]) == 1  # nothing ran
