"""Times the operators beside their peers. CPU: ratio = peer time / ours; GPU: kernel times and floors."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from benchmarks.gpu import GpuPlan, quick_gpu_plan, run_gpu_benchmarks
from benchmarks.report import quick_plan, run_benchmarks
from benchmarks.suite import Plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the most telling rows, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--threads", type=int, action="append", metavar="N", help="may be repeated; CPU only")
    parser.add_argument("--operator", action="append", metavar="NAME", help="only these; may be repeated")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto: a GPU where there is one")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not options.threads else "cpu"
    if options.threads and device != "cpu":
        parser.error("--threads are the CPU's: add --device cpu")
    if options.threads and min(options.threads) < 1:
        parser.error(f"--threads: expected at least 1; got {min(options.threads)}")
    try:
        if device == "cpu":
            plan = quick_plan(options.operator) if options.quick else Plan(operators=options.operator)
            if options.threads:
                plan = dataclasses.replace(plan, threads=tuple(options.threads))
            report = run_benchmarks(plan, options.json)
        else:
            gpu = dataclasses.replace(quick_gpu_plan() if options.quick else GpuPlan(), device=device)
            gpu = gpu.only(options.operator) if options.operator else gpu
            report = run_gpu_benchmarks(gpu, options.json)
    except ValueError as error:
        parser.error(str(error))
    if any("failed" in row for row in report["rows"]):
        print("a result broke its operator's contract; see the rows marked FAILED", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
