"""Times the operators beside their peers. CPU: ratio = peer time / ours; GPU: kernel times and floors.

Other commands, each with --help of its own:
  memory     peak memory of the mask criterion beside Mask2Former's own
  resources  what the CUDA kernels of the built extension ask of the hardware
  gpu        make gpu: builds for this machine's GPU, tests, sanitizes and measures
  sanitize   the operators' contract cases, called once each, for compute-sanitizer
  plot       the README's chart from a report
  merge      one report from several pieces, a later row replacing an earlier one
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

# The package is imported by the commands that need it: `gpu` builds its extension first.
COMMANDS = {name: f"benchmarks.{name}" for name in ("memory", "resources", "gpu", "plot")}
COMMANDS["sanitize"] = "tests.ops.sanitized"


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[arguments[0]])
        code: int = command.main(arguments[1:])
        return code
    return merge_files(arguments[1:]) if arguments[:1] == ["merge"] else run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Times; 1 where a result of ours broke its contract."""
    from benchmarks.report import run_benchmarks
    from benchmarks.runner import Plan
    from benchmarks.suite import all_suites

    parser = parser_of(__doc__, "[COMMAND]")
    parser.add_argument("--quick", action="store_true", help="the most telling rows, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--threads", type=int, action="append", metavar="N", help="may be repeated; CPU only")
    parser.add_argument("--operator", action="append", metavar="NAME", help="only these; may be repeated")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto: a GPU where there is one")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="after which nothing more begins")
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
    try:
        plan = Plan.of(device, options.quick, options.operator, options.alone)
    except ValueError as error:
        parser.error(str(error))
    changes = {"threads": options.threads, "deadline_s": options.deadline}
    changes["budget_s"] = 0.0 if options.tiny else None
    plan = dataclasses.replace(plan, **{name: value for name, value in changes.items() if value is not None})
    suites = [suite.at_tiny_sizes() if options.tiny else suite for suite in all_suites()]
    report = run_benchmarks(plan, options.json, suites=suites)
    if any("failed" in row for row in report["rows"]):
        print("a result broke its operator's contract; see the rows marked FAILED", file=sys.stderr)
        return 1
    return 0


def merge_files(arguments: Sequence[str]) -> int:
    from benchmarks.report import merge

    parser = parser_of("Joins reports that were measured in pieces on one machine.", "merge")
    parser.add_argument("pieces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    merged = merge([json.loads(piece.read_text()) for piece in options.pieces])
    options.out.write_text(json.dumps(merged, indent=1) + "\n")
    return 0


def parser_of(description: str | None, command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
