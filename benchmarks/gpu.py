"""What `make gpu` does, in three parts of under nine minutes: tests, sanitizers, benchmarks.

    python -m benchmarks gpu [tests] [sanitize] [bench]

It takes the Python that runs it with its packages as they are (torch, pybind11, cmake, pytest) and writes
inside the repository alone: the extension into detr_fast/, everything else into build/gpu/. A step that fails
does not keep the later ones from running; the exit code tells at the end. A part that is called again repeats
what has not passed on the same sources. Results are joined in benchmarks/results/DATE-GPU.{json,md}; where
$OUT names a folder, the joined result and each part's JSON and log are left there too.

With --device cpu it is a rehearsal: commands are the same, but the extension is configured, not built, tests
are collected, not run, and benchmarks take tiny cases.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pybind11
import torch

from benchmarks.machine_code import find_tool
from benchmarks.steps import (
    PYTHON,
    ROOT,
    Command,
    Rounds,
    Run,
    Skip,
    Step,
    details,
    hand_out,
    importable,
    predicted_s,
    succeeded,
    write_json,
)

RESULTS = ROOT / "benchmarks" / "results"
CLASSIC, DEFORMOPS = "torch_ms_deform_attn", "deformops"
PEERS = {
    "torch_linear_assignment": "torch_linear_assignment-*.whl",
    "birder": "birder-*.whl",
    CLASSIC: f"{CLASSIC}-*.tar.gz",
}
MINUTES = 9.0  # of a part: a call on a lent machine may last ten
CORES, WORKERS = 16, 12  # of the machine that is planned for; of its tests
SPARE_S = 10.0  # of a benchmark's time, for what it does after its deadline
COMPILE_BIRDER = "import sys, benchmarks.peers.gpu_assignment as peers; sys.exit(peers.birder_operator()[1])"


def build(run: Run) -> list[Command]:
    """CMake, into build/gpu/cmake, then the extension into detr_fast/."""
    folder = str(run.work / "cmake")
    options = [
        "-DDETR_FAST_CUDA=" + ("OFF" if run.rehearsal else "ON"),
        f"-DDETR_FAST_CUDA_ARCHS={run.architecture()}-real",
        f"-DPython_EXECUTABLE={PYTHON}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=run.environment()["PATH"]) else []
    configure = Command(["cmake", "-S", ".", "-B", folder, *generator, *options])
    if run.rehearsal:
        return [configure]
    return [
        configure,
        Command(["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)]),
        Command(["cmake", "--install", folder, "--prefix", "."]),
    ]


def install(archives: dict[str, str], run: Run) -> list[Command]:
    """What is not installed here, from archives {module: pattern}, compiled against the torch at hand."""
    folder = Path(os.environ.get("DETR_FAST_PEERS", ROOT / "wheels"))
    missing = [module for module in archives if not importable(module)]
    found = {module: sorted(folder.glob(archives[module])) for module in missing}
    # birder's kernel is compiled when it is first used: here, not in the benchmark's time
    with_birder = "birder" in archives and ("birder" not in missing or bool(found["birder"]))
    if not any(found.values()) and not with_birder:
        where = f"{folder.name}/ (DETR_FAST_PEERS)"
        raise Skip(f"none in {where}: see benchmarks/README.md" if missing else "all are installed")
    for lock in (run.work / "extensions").glob("*/lock"):  # of a run that was stopped
        lock.unlink()
    environment = {"MAX_JOBS": str(os.cpu_count() or 1)}
    if not (Path(run.environment().get("CUDA_HOME", "")) / "include" / "cusparse.h").is_file():
        # a toolkit that came without its libraries' headers: torch's own packages have them
        headers = map(str, sorted((Path(torch.__file__).parents[1] / "nvidia").glob("*/include")))
        environment["CPATH"] = os.pathsep.join(filter(None, [*headers, os.environ.get("CPATH", "")]))
    options = "--no-index --no-deps --no-build-isolation --no-cache-dir --upgrade --ignore-requires-python"
    pip = [PYTHON, "-m", "pip", "install", *options.split(), "--target", str(run.packages)]
    capability = run.architecture()
    only = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{capability[:-1]}.{capability[-1]}"}
    commands = [
        Command([*pip, str(paths[-1])], {**environment, **only} if module in (CLASSIC, DEFORMOPS) else None)
        for module, paths in found.items()
        if paths and not (run.packages / module).exists()
    ]
    return [*commands, Command([PYTHON, "-c", COMPILE_BIRDER], environment)] if with_birder else commands


def deformops(run: Run) -> list[Command]:
    if sys.version_info < (3, 12):
        raise Skip("needs Python 3.12")
    return install({DEFORMOPS: "deformops-*"}, run)


def pytest(arguments: str, run: Run, *, workers: int = WORKERS, all_must_run: bool = False) -> list[Command]:
    """arguments: words, a last one in quotes. all_must_run: a test that is skipped fails the step."""
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--no-header"]
    if run.rehearsal:
        options += ["--collect-only", "-p", "tests.fake_cuda"]
    elif workers > 1 and importable("xdist"):
        options += ["-n", str(min(workers, os.cpu_count() or 1)), "--dist", "worksteal"]
    environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    argv = [PYTHON, "-m", "pytest", *options, *shlex.split(arguments)]
    return [Command(argv, environment, skipped if all_must_run else lambda output: "")]


def skipped(output: str) -> str:
    found = re.search(r"(\d+) skipped", output)
    return f"{found[1]} did not run" if found else ""


def sanitizer(run: Run) -> list[Command]:
    if find_tool("compute-sanitizer", run.packages):
        raise Skip("is installed")
    return install({"compute_sanitizer": "nvidia_cuda_sanitizer_api-*.whl"}, run)


def sanitize(tool: str, run: Run) -> list[Command]:
    """Small cases under one of compute-sanitizer's tools."""
    module = [PYTHON, "-m", "benchmarks", "sanitize", "--device", run.device]
    if run.rehearsal:
        return [Command([*module, "--largest", "200"])]
    sanitizer = find_tool("compute-sanitizer", run.packages)
    if sanitizer is None:
        raise Skip("no compute-sanitizer in a CUDA toolkit or the package nvidia-cuda-sanitizer-api")
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    # each tensor gets an allocation of its own, so that an access beyond its end is seen
    return [Command([sanitizer, *options, *module], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, findings)]


def findings(output: str) -> str:
    """What compute-sanitizer's last lines complain of; they must be there."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (.*)", output)
    if not summaries:
        return "compute-sanitizer printed no summary"
    return "; ".join(f"{count} {what}" for count, what in summaries if int(count))


def benchmark(name: str, operators: str, run: Run) -> list[Command]:
    """One process for some operators, so that a lost device ends no other's; its report is NAME.report."""
    report, deadline_s = run.work / f"{name}.report", run.limit_s - SPARE_S
    report.unlink(missing_ok=True)
    if deadline_s < SPARE_S:
        raise Skip("no time was left")
    options = ["--device", run.device, "--alone", "--deadline", f"{deadline_s:.0f}", "--json", str(report)]
    options += [f"--operator={operator}" for operator in operators.split()]
    return [Command([PYTHON, "-m", "benchmarks", *options, *(["--tiny"] if run.rehearsal else [])])]


BUILD = Step("build", build, 60)
# of the references, which CPUs run too, a sample
KERNELS = "cuda and (not reference-cuda or forward_equals and reference-cuda-float32)"
CONTRACT = f"tests/ops/test_contract.py -k '{KERNELS}'"
GOLDEN = "tests/golden/test_golden_ms_deform_attn.py -k cuda"
MATCHING = "linear_assignment box_match_cost matcher criterion class_loss box_loss"
MODELS = "mask_match_cost mask_criterion point_sample model"
PARTS: dict[str, Rounds] = {
    "tests": (
        (BUILD,),
        # sizes beyond int32 and float64 references of real sizes: alone on the card
        (Step("large", partial(pytest, "tests/gpu -m large", workers=1, all_must_run=True), 45),),
        (Step("contract", partial(pytest, CONTRACT), 200),),
        (Step("device", partial(pytest, "tests/gpu -m 'not large'"), 180),),  # streams, graphs, inductor
        (Step("golden", partial(pytest, GOLDEN, workers=4), 25),),
    ),
    "sanitize": (
        (BUILD, Step("sanitizer", sanitizer, 10, required=False)),
        (
            Step("memcheck", partial(sanitize, "memcheck"), 400),
            Step("racecheck", partial(sanitize, "racecheck"), 400),
            Step("synccheck", partial(sanitize, "synccheck"), 400, required=False),
        ),
    ),
    "bench": (
        (
            BUILD,
            Step("peers", partial(install, PEERS), 120, required=False),
            Step("deformops", deformops, 120, required=False),
        ),
        (Step("attention", partial(benchmark, "attention", "ms_deform_attn"), 190),),
        (Step("matching", partial(benchmark, "matching", MATCHING), 110),),
        (Step("models", partial(benchmark, "models", MODELS), 100),),
    ),
}


def plan(parts: Sequence[str]) -> list[str]:
    """What will run, with its predicted minutes."""
    lines = []
    for part in parts:
        total = sum(map(predicted_s, PARTS[part])) / 60
        rounds = (" + ".join(step.name for step in r) + f" {predicted_s(r) / 60:.1f}" for r in PARTS[part])
        lines.append(f"== plan: {part}, {total:.1f} of {MINUTES:g} minutes: {', '.join(rounds)}")
    if (cores := os.cpu_count() or 1) < CORES:
        lines.append(f"== predicted for {CORES} cores, here are {cores}")
    if not importable("xdist"):
        lines.append("== without pytest-xdist one process runs the tests, and time may be up before")
    return lines


def join(work: Path, name: str, results: Path) -> tuple[Path, Path]:
    """One JSON and one table from the parts in `work` that ran on the sources of the latest."""
    paths = [path for part in PARTS if (path := work / f"{part}.json").is_file()]
    latest = json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text())
    found = [json.loads(path.read_text()) for path in paths]
    parts = [part for part in found if part["sources"] == latest["sources"]]
    lines = [f"# {name}", "", f"Commit {latest['commit']}.", "", "| part | step | state | seconds | |"]
    lines += ["|---|---|---|---:|---|"]
    for part in parts:
        cells = ([part["part"], s["step"], s["state"], str(s["seconds"]), details(s)] for s in part["steps"])
        lines += [f"| {' | '.join(line)} |" for line in cells]
    others = [part["part"] for part in found if part not in parts]
    lines += ["", f"Of other sources, left out: {', '.join(others)}."] if others else []
    text = "\n".join(lines) + "\n\n"
    content: dict[str, Any] = {"commit": latest["commit"], "seed": {p["part"]: p["seed"] for p in parts}}
    content["steps"] = [step for part in parts for step in part["steps"]]
    if reports := [report for part in parts for report in part["reports"]]:
        from benchmarks.goals import judge  # only now: the extension was built meanwhile
        from benchmarks.report import markdown

        rows = [row for report in reports for row in report["rows"]]
        machine = {**reports[-1]["machine"], "commit": latest["commit"]}
        content |= {**reports[0], "machine": machine, "rows": rows, "goals": judge(rows)}
        text += markdown(content)
    results.mkdir(parents=True, exist_ok=True)
    as_json, table = results / f"{name}.json", results / f"{name}.md"
    write_json(as_json, content)
    table.write_text(text, encoding="utf-8")
    return as_json, table


def main(arguments: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which a part ends")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="default: build/gpu or build/rehearsal")
    parser.add_argument("--plan", action="store_true", help="print what would run and how long")
    parser.add_argument(
        "--join", type=Path, metavar="FOLDER", help="join the JSON of parts in it, run nothing"
    )
    options = parser.parse_args(arguments)
    parts, today = options.parts or list(PARTS), f"{datetime.now(timezone.utc):%Y-%m-%d}"
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"PART: expected some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    if options.join is not None:
        _, table = join(options.join, f"{today}-joined", options.join)
        print(table.read_text())
        return 0
    print("\n".join(plan(parts)), flush=True)
    if options.plan:
        return 0
    rehearsal = options.device == "cpu"
    if not rehearsal and not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here; `make test` proves the kernels without one")
        return 2
    work = (options.work or ROOT / "build" / ("rehearsal" if rehearsal else "gpu")).resolve()
    gpu = "rehearsal" if rehearsal else re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-")
    all_passed = True
    for part in parts:
        run = Run(part, options.device, options.minutes, work)
        run.perform(PARTS[part])
        passed = succeeded(run.steps)
        all_passed &= passed
        paths = join(work, f"{today}-{gpu}", work if rehearsal else RESULTS)
        hand_out(*paths)
        print(f"== {part}: {'passed' if passed else 'NOT PASSED'}, joined in {' and '.join(map(str, paths))}")
    return 0 if all_passed else 1
