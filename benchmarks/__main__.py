"""Times the operators beside their peers. CPU: ratio = peer time / ours; GPU: kernel times and floors.

Other commands, each with --help of its own:
  memory     peak memory of the mask criterion beside Mask2Former's own
  resources  what the CUDA kernels of the built extension ask of the hardware
  sanitize   the operators' contract cases, called once each, for compute-sanitizer
  plot       the README's chart from a report
  merge      one report from several pieces, a later row replacing an earlier one
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report import markdown, merge, run_benchmarks
from benchmarks.runner import Plan
from benchmarks.suite import all_suites

COMMANDS = {name: f"benchmarks.{name}" for name in ("memory", "resources", "plot")}
COMMANDS["sanitize"] = "tests.ops.sanitized"


def main(arguments: Sequence[str]) -> int:
    name, *rest = arguments or [""]
    if name in COMMANDS:
        code: int = importlib.import_module(COMMANDS[name]).main(rest)
        return code
    return merge_files(rest) if name == "merge" else run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Times; 1 where a result of ours broke its contract."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks [COMMAND]", description=__doc__, formatter_class=form
    )
    parser.add_argument("--quick", action="store_true", help="the most telling rows, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--threads", type=int, action="append", metavar="N", help="may be repeated; CPU only")
    parser.add_argument(
        "--operator", action="append", dest="operators", metavar="NAME", help="only these; may be repeated"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto: a GPU where there is one")
    parser.add_argument(
        "--deadline", type=float, dest="deadline_s", metavar="SECONDS", help="after which nothing more begins"
    )
    parser.add_argument("--alone", action="store_true", help="each contender by itself, on a CPU too")
    parser.add_argument("--tiny", action="store_true", help="the cases of the tests, which take milliseconds")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not options.threads else "cpu"
    if options.threads and device != "cpu":
        parser.error("--threads: they are the CPU's; add --device cpu")
    if options.threads and min(options.threads) < 1:
        parser.error(f"--threads: expected at least 1; got {min(options.threads)}")
    given = {name: getattr(options, name) for name in ("threads", "operators", "deadline_s")}
    given["budget_s"] = 0.0 if options.tiny else None
    given = {name: value for name, value in given.items() if value is not None}
    try:
        plan = Plan.of(device, options.quick, options.alone, **given)
    except ValueError as error:
        parser.error(str(error))
    suites = [suite.at_tiny_sizes() if options.tiny else suite for suite in all_suites()]
    report = run_benchmarks(plan, options.json, suites=suites)
    if any("failed" in row for row in report["rows"]):
        print("a result broke its operator's contract; see the rows marked FAILED", file=sys.stderr)
        return 1
    return 0


def merge_files(arguments: Sequence[str]) -> int:
    """Prints a GPU run's tables, too."""
    parser = argparse.ArgumentParser("python -m benchmarks merge", description=merge.__doc__)
    parser.add_argument("pieces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    merged = merge([json.loads(piece.read_text()) for piece in options.pieces])
    options.out.write_text(json.dumps(merged, indent=1) + "\n")
    if "rates" in merged:
        print(markdown(merged))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
