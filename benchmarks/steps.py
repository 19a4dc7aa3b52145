"""Steps of a long run: commands with a time limit, their logs, and results that a later call resumes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine_code import find_tool
from detr_fast import machine

ROOT = Path(__file__).resolve().parents[1]
TIME_WAS_UP = 124  # the exit code of a command that was stopped
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TESTS = r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error)[^=\n]*|\d+\S* tests collected.*)"
PYTHON = sys.executable


class Skip(Exception):
    """A step that cannot run here, and why."""


@dataclass(frozen=True)
class Command:
    """environment: added to ours. wrong: by the output of a command that exited with 0, what is wrong."""

    argv: Sequence[str]
    environment: dict[str, str] | None = None
    wrong: Callable[[str], str] = lambda output: ""


@dataclass(frozen=True)
class Step:
    """commands: made when the step begins; it may raise Skip. predicted_s: on 16 cores beside an H100.

    required: without this step's success the result does not count as passed, not even when skipped.
    """

    name: str
    commands: Callable[[Run], list[Command]]
    predicted_s: float
    required: bool = True


Rounds = Sequence[Sequence[Step]]  # one after the other; the steps of a round beside each other


class Run:
    """One part: where it works, what it has found so far. limit_s: of each step of the round at hand."""

    def __init__(self, part: str, device: str, minutes: float, work: Path) -> None:
        self.part, self.device, self.work = part, device, work
        self.limit_s = 60 * minutes
        self.ends = time.monotonic() + self.limit_s
        self.packages, self.sources = work / "packages", fingerprint()
        self.steps: list[dict[str, Any]] = []
        self.seed = os.environ.get("DETR_FAST_SEED") or str(random.SystemRandom().randrange(2**31))
        work.mkdir(parents=True, exist_ok=True)

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def architecture(self) -> str:
        """The GPU's compute capability as CMake writes it."""
        return "90" if self.rehearsal else "{}{}".format(*torch.cuda.get_device_capability())

    def environment(self) -> dict[str, str]:
        """Ours, with every cache inside the repository and nvcc where compilers look for it."""
        environment = dict(os.environ)
        path = [str(Path(PYTHON).parent), environment.get("PATH", "")]
        if nvcc := find_tool("nvcc"):
            path.append(str(Path(nvcc).parent))
            environment.setdefault("CUDACXX", nvcc)
            for home in (Path(nvcc).resolve().parents[1], Path("/usr/local/cuda")):
                if (home / "include" / "cuda_runtime.h").is_file():
                    environment.setdefault("CUDA_HOME", str(home))
        caches = {"TRITON_CACHE_DIR": "triton", "TORCH_EXTENSIONS_DIR": "extensions"}
        caches |= {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
        modules = [str(ROOT), str(self.packages), environment.get("PYTHONPATH", "")]
        return {
            **environment,
            **{name: str(self.work / folder) for name, folder in caches.items()},
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "DETR_FAST_SEED": self.seed,
        }

    def perform(self, rounds: Rounds) -> None:
        """Runs what did not pass in an earlier call; writes the part's result after every round."""
        for entry in self.earlier():
            if entry["state"] == PASSED and entry["step"] != "build":
                self.steps.append({**entry, "earlier": True})
        kept = {entry["step"] for entry in self.steps}
        todo = [[step for step in steps if step.name not in kept] for steps in rounds]
        for number, steps in enumerate(todo):
            self.limit_s = self.ends - time.monotonic() - sum(map(predicted_s, todo[number + 1 :]))
            with ThreadPoolExecutor(len(steps) or 1) as pool:
                self.steps += pool.map(self.step, steps)
            self.write()

    def earlier(self) -> list[dict[str, Any]]:
        """The steps of an earlier call, where the sources have not changed since."""
        path = self.work / f"{self.part}.json"
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        steps: list[dict[str, Any]] = earlier.get("steps", [])
        return steps if earlier.get("sources") == self.sources else []

    def step(self, step: Step) -> dict[str, Any]:
        """Runs one step; its state, seconds and, where it failed, the end of its output."""
        started = time.monotonic()
        entry: dict[str, Any] = {"step": step.name, "state": PASSED, "required": step.required}
        log = self.work / f"{step.name}.log"
        log.write_text("")
        try:
            for command in step.commands(self):
                before, left = log.stat().st_size, self.limit_s - (time.monotonic() - started)
                code = execute(command, self.environment(), left, log)
                output = log.read_bytes()[before:].decode(errors="replace")
                why = command.wrong(output) if code == 0 else f"exit code {code}"
                if code == TIME_WAS_UP:
                    why = f"time was up after {max(0.0, left):.0f} s"
                if why:
                    entry.update(state=FAILED, why=why)
                    break
        except Skip as skip:
            entry.update(state=SKIPPED, why=str(skip))
        except Exception as error:  # the later steps run all the same
            entry.update(state=FAILED, why=f"{type(error).__name__}: {error}")
        entry["seconds"] = round(time.monotonic() - started, 1)
        output = _text(log)
        if found := re.findall(TESTS, output, re.MULTILINE):
            entry["tests"] = found[-1].strip()
        if entry["state"] == FAILED:
            entry["output"] = output[-4000:]
            print(output[-4000:], flush=True)
        print(f"== {step.name}: {entry['state']} in {entry['seconds']} s {details(entry)}", flush=True)
        return entry

    def write(self) -> None:
        """The part's JSON and log, also into $OUT."""
        reports = [self.work / f"{entry['step']}.report" for entry in self.steps]
        content: dict[str, Any] = {"part": self.part, "commit": machine.commit(), "sources": self.sources}
        content |= {"seed": self.seed, "steps": self.steps}
        content["reports"] = [json.loads(path.read_text()) for path in reports if path.is_file()]
        ran = [entry["step"] for entry in self.steps if "earlier" not in entry]
        log = "\n".join(f"== {step}\n{_text(self.work / f'{step}.log')}" for step in ran)
        as_json = self.work / f"{self.part}.json"
        write_json(as_json, content)
        as_json.with_suffix(".log").write_text(log, encoding="utf-8")
        hand_out(as_json, as_json.with_suffix(".log"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def hand_out(*paths: Path) -> None:
    """Copies files to where the caller of a lent machine takes them from."""
    if out := os.environ.get("OUT"):
        for path in paths:
            shutil.copy(path, out)


def fingerprint() -> str:
    """Of all that a result depends on and that changes from one call to the next."""
    digest = hashlib.sha256((torch.cuda.get_device_name() if torch.cuda.is_available() else "").encode())
    for folder in ("csrc", "detr_fast", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def execute(command: Command, environment: dict[str, str], limit_s: float, log: Path) -> int:
    """Exit code; output goes to the end of `log`. A command that is stopped takes its children along."""
    if limit_s <= 0:
        return TIME_WAS_UP
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(command.argv),
            cwd=ROOT,
            env={**environment, **(command.environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return TIME_WAS_UP


def importable(module: str) -> bool:
    """Whether a module is installed, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that holds it
        return False


def succeeded(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether no step failed and none that is required was skipped."""
    return all(s["state"] == PASSED or (s["state"] == SKIPPED and not s["required"]) for s in steps)


def details(entry: dict[str, Any]) -> str:
    """What the tests of a step said, and why it failed."""
    earlier = ["in an earlier call"] if "earlier" in entry else []
    return "; ".join([*earlier, *(str(entry[key]) for key in ("tests", "why") if key in entry)])


def predicted_s(round_: Sequence[Step]) -> float:
    return max((step.predicted_s for step in round_), default=0.0)
