"""What `make gpu` does: builds for this machine's GPU, tests, sanitizes, measures, and leaves one result.

It uses the Python that runs it (torch, pybind11, cmake and pytest must be there) and writes nothing outside
the repository: the extension into detr_fast/, everything else into build/gpu/. A step that fails does not
keep the later ones from running; the exit code tells at the end. The result is a JSON file and a table,
benchmarks/results/DATE-GPU.{json,md}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pybind11
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLASSIC = "torch_ms_deform_attn"
ARCHIVES = {
    "torch_linear_assignment": "torch_linear_assignment-*.whl",
    "birder": "birder-*.whl",
    CLASSIC: f"{CLASSIC}-*.tar.gz",
}
TIME_WAS_UP = 124  # the exit code of a command that was stopped
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
BENCHMARK_S = 150.0  # of the run, kept for it
SPARE_S = 10.0  # of a benchmark's time, for what it does after its deadline
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
    """commands: made when the step begins; it may raise Skip. limit_s: of the whole step.

    required: without this step's success the result does not count as passed, not even when skipped.
    leaves_s: of the run, for the steps after it.
    """

    name: str
    commands: Callable[[Run], list[Command]]
    limit_s: float
    required: bool = True
    leaves_s: float = BENCHMARK_S


class Run:
    """Where this run works and what it has found so far."""

    def __init__(self, device: str, minutes: float, work: Path) -> None:
        self.device, self.work = device, work
        self.ends = time.monotonic() + 60 * minutes
        self.report, self.peers = work / "benchmark.json", work / "peers"
        self.steps: list[dict[str, Any]] = []
        self.seed = os.environ.get("DETR_FAST_SEED") or str(random.SystemRandom().randrange(2**31))
        work.mkdir(parents=True, exist_ok=True)
        self.report.unlink(missing_ok=True)

    def remaining_s(self) -> float:
        return self.ends - time.monotonic()

    def architecture(self) -> str:
        """The GPU's compute capability as CMake writes it."""
        return "{}{}".format(*torch.cuda.get_device_capability()) if self.device == "cuda" else "native"

    def environment(self) -> dict[str, str]:
        """Ours, with every cache inside the repository and nvcc where compilers look for it."""
        environment = dict(os.environ)
        path = [str(Path(PYTHON).parent), environment.get("PATH", "")]
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if nvcc is not None:
            path.append(str(Path(nvcc).parent))
            environment.setdefault("CUDACXX", nvcc)
            for home in (Path(nvcc).resolve().parents[1], Path("/usr/local/cuda")):
                if (home / "include" / "cuda_runtime.h").is_file():
                    environment.setdefault("CUDA_HOME", str(home))
        caches = {"TRITON_CACHE_DIR": "triton", "TORCH_EXTENSIONS_DIR": "extensions"}
        caches |= {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
        modules = [str(ROOT), str(self.peers), environment.get("PYTHONPATH", "")]
        return {
            **environment,
            **{name: str(self.work / folder) for name, folder in caches.items()},
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(filter(None, modules)),
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "DETR_FAST_SEED": self.seed,
        }

    def step(self, step: Step) -> None:
        """Runs one step and records its state, seconds and, where it failed, the end of its output."""
        started = time.monotonic()
        entry: dict[str, Any] = {"step": step.name, "state": PASSED, "required": step.required}
        output = ""
        try:
            for command in step.commands(self):
                taken = time.monotonic() - started
                left = min(step.limit_s - taken, self.remaining_s() - step.leaves_s)
                code, text = execute(command, self.environment(), left)
                output += text
                why = command.wrong(text) if code == 0 else f"exit code {code}"
                if code == TIME_WAS_UP:
                    why = f"time was up after {max(0.0, left):.0f} s"
                if why:
                    entry.update(state=FAILED, why=why)
                    break
        except Skip as skip:
            entry.update(state=SKIPPED, why=str(skip))
        except Exception as error:  # the later steps run all the same
            entry.update(state=FAILED, why=f"{type(error).__name__}: {error}")
        (self.work / f"{step.name}.log").write_text(output, encoding="utf-8")
        entry["seconds"] = round(time.monotonic() - started, 1)
        if found := re.findall(
            r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error)[^=\n]*)", output, re.MULTILINE
        ):
            entry["tests"] = found[-1].strip()
        if entry["state"] == FAILED:
            entry["output"] = output[-4000:]
            print(output[-4000:], flush=True)
        self.steps.append(entry)
        print(f"== {step.name}: {entry['state']} in {entry['seconds']} s {details(entry)}", flush=True)


def execute(command: Command, environment: dict[str, str], limit_s: float) -> tuple[int, str]:
    """Exit code and all output; a command that is stopped takes its children along."""
    if limit_s <= 0:
        return TIME_WAS_UP, ""
    process = subprocess.Popen(
        list(command.argv),
        cwd=ROOT,
        env={**environment, **(command.environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=limit_s)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return TIME_WAS_UP, text or ""


def build(run: Run) -> list[Command]:
    """CMake, into build/gpu/cmake, then the extension into detr_fast/."""
    folder = str(run.work / "cmake")
    options = [
        "-DDETR_FAST_CUDA=" + ("ON" if run.device == "cuda" else "OFF"),
        f"-DDETR_FAST_CUDA_ARCHS={run.architecture()}-real",
        f"-DPython_EXECUTABLE={PYTHON}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=run.environment()["PATH"]) else []
    return [
        Command(["cmake", "-S", ".", "-B", folder, *generator, *options]),
        Command(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)]),
        Command(["cmake", "--install", folder, "--prefix", "."]),
    ]


def peers(run: Run) -> list[Command]:
    """What ours is compared with, from archives, compiled against the torch that is here."""
    folder = Path(os.environ.get("DETR_FAST_PEERS", ROOT / "wheels"))
    found = {module: sorted(folder.glob(pattern)) for module, pattern in ARCHIVES.items()}
    missing = [module for module in ARCHIVES if importlib.util.find_spec(module) is None]
    archives = {module: str(found[module][-1]) for module in missing if found[module]}
    # birder's kernel is compiled when it is first used: here, not in the benchmark's time
    with_birder = "birder" in archives or "birder" not in missing
    if not archives and not with_birder:
        raise Skip(f"none to install in {folder.name}/ (DETR_FAST_PEERS): see benchmarks/README.md")
    for lock in (run.work / "extensions").glob("*/lock"):  # of a run that was stopped
        lock.unlink()
    environment = {"MAX_JOBS": str(os.cpu_count() or 1)}
    if not (Path(run.environment().get("CUDA_HOME", "")) / "include" / "cusparse.h").is_file():
        # a toolkit that came without its libraries' headers: torch's own packages have them
        headers = sorted((Path(torch.__file__).parents[1] / "nvidia").glob("*/include"))
        environment["CPATH"] = os.pathsep.join([*map(str, headers), os.environ.get("CPATH", "")]).strip(
            os.pathsep
        )
    install = ["install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--upgrade"]
    pip = [PYTHON, "-m", "pip", *install, "--ignore-requires-python", "--target", str(run.peers)]
    capability = run.architecture()
    only = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{capability[:-1]}.{capability[-1]}"}
    extra = {CLASSIC: {**environment, **only}}
    commands = [Command([*pip, archive], extra.get(module)) for module, archive in archives.items()]
    if with_birder:
        code = (
            "from benchmarks.peers.gpu_assignment import birder_operator as b; import sys; sys.exit(b()[1])"
        )
        commands.append(Command([PYTHON, "-c", code], environment))
    return commands


def tests(paths: str, keywords: str, run: Run) -> list[Command]:
    processes = ["-n", "6"] if importlib.util.find_spec("xdist") is not None else []
    options = ["-q", "-p", "no:cacheprovider", "--no-header", *processes, "-k", keywords]
    return [Command([PYTHON, "-m", "pytest", *options, paths])]


def sanitize(tool: str, run: Run) -> list[Command]:
    """Small cases under one of compute-sanitizer's tools."""
    folders = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
    path = os.pathsep.join([run.environment()["PATH"], *folders])
    sanitizer = shutil.which("compute-sanitizer", path=path)
    if sanitizer is None:
        raise Skip("compute-sanitizer not found: look into NVIDIA's CUDA toolkit")
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    module = [PYTHON, "-m", "benchmarks", "sanitize", "--device", run.device]
    # each tensor gets an allocation of its own, so that an access beyond its end is seen
    return [Command([sanitizer, *options, *module], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, findings)]


def findings(output: str) -> str:
    """What compute-sanitizer's last lines complain of; they must be there."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (.*)", output)
    if not summaries:
        return "compute-sanitizer printed no summary"
    return "; ".join(f"{count} {what}" for count, what in summaries if int(count))


def benchmark(run: Run) -> list[Command]:
    deadline_s = min(240.0, run.remaining_s() - 2 * SPARE_S)
    if deadline_s < SPARE_S:
        raise Skip("no time was left")
    options = ["--device", run.device, "--deadline", f"{deadline_s:.0f}", "--json", str(run.report)]
    return [Command([PYTHON, "-m", "benchmarks", *options])]


# beside the steps before the benchmark
PEERS = Step("peers", peers, 240, required=False)
STEPS = (
    Step("build", build, 150),
    PEERS,
    Step("contract", partial(tests, "tests/ops/test_contract.py", "cuda"), 100),
    Step("device", partial(tests, "tests/gpu", ""), 80),  # streams, graphs, sizes beyond int32
    Step("golden", partial(tests, "tests/golden/test_golden_ms_deform_attn.py", "cuda"), 60),
    Step("memcheck", partial(sanitize, "memcheck"), 80),
    Step("racecheck", partial(sanitize, "racecheck"), 80),
    Step("synccheck", partial(sanitize, "synccheck"), 40, required=False),
    Step("benchmark", benchmark, 270, leaves_s=0.0),
)


def perform(run: Run, steps: Sequence[Step]) -> None:
    """One step after the other, but for the peers, which are built beside those before the benchmark."""
    beside = threading.Thread(target=run.step, args=(PEERS,))
    if PEERS in steps:
        beside.start()
    for step in steps:
        if step.name == "benchmark" and PEERS in steps:
            beside.join()
        if step is not PEERS:
            run.step(step)
    if PEERS in steps:
        beside.join()


def succeeded(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether no step failed and none that is required was skipped."""
    return all(s["state"] == PASSED or (s["state"] == SKIPPED and not s["required"]) for s in steps)


def details(entry: dict[str, Any]) -> str:
    """What the tests of a step said, and why it failed."""
    return "; ".join(str(entry[key]) for key in ("tests", "why") if key in entry)


def write(run: Run, name: str, results: Path) -> tuple[Path, Path]:
    """The JSON and the table of a run; the benchmark's own report where there is one."""
    report: dict[str, Any] = json.loads(run.report.read_text()) if run.report.is_file() else {}
    commit = os.environ.get("DETR_FAST_COMMIT")
    if commit and report and not report["machine"]["commit"]:
        report["machine"]["commit"] = commit
    lines = [f"# {name}", "", "| step | state | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {s['step']} | {s['state']} | {s['seconds']} | {details(s)} |" for s in run.steps]
    text = "\n".join(lines) + "\n\n"
    if report:
        from benchmarks.goals import judge  # only now: the extension was built meanwhile
        from benchmarks.report import markdown

        report["goals"] = judge(report["rows"])  # a run that was stopped has not come to it
        text += markdown(report)
    results.mkdir(parents=True, exist_ok=True)
    paths = results / f"{name}.json", results / f"{name}.md"
    content = {"steps": run.steps, "seed": run.seed, **report}
    paths[0].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(text, encoding="utf-8")
    return paths


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.8, help="after which the run ends")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here; `make test` proves the kernels without one")
        return 2
    run = Run("cuda", options.minutes, ROOT / "build" / "gpu")
    perform(run, [step for step in STEPS if options.only is None or step.name in options.only])
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-")
    _, table = write(run, f"{datetime.now(timezone.utc):%Y-%m-%d-%H%M}-{gpu}", RESULTS)
    print(table.read_text())
    return 0 if succeeded(run.steps) else 1
