"""The GPU benchmark as `make gpu` runs it. Exit code 1: a result of ours broke its contract."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu import GpuPlan, run_gpu_benchmarks
from benchmarks.gpu.contenders import CUDA, DETERMINISTIC, TRITON
from benchmarks.gpu.matching_contenders import AUCTION


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=240.0, help="seconds")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    plan = GpuPlan(device=arguments.device, deadline_s=arguments.deadline)
    report = run_gpu_benchmarks(plan, arguments.json)
    ours = (CUDA, TRITON, CUDA + AUCTION, CUDA + DETERMINISTIC, TRITON + DETERMINISTIC, "native")
    return int(any("failed" in row and row["contender"] in ours for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
