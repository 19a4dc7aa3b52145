"""What the CUDA kernels of the built extension ask of the hardware, read from their machine code.

    python -m benchmarks resources [EXTENSION] [--output FOLDER]

writes `resources.json` (a row for each kernel and architecture) and `resources.md` (a row for each kernel).
EXTENSION is any file that holds device code; without it, the extension that is installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.machine_code import LIMITS, Kernel, describe_build, read_kernels
from detr_fast.extension import extension
from detr_fast.machine import describe_machine

RESULTS = Path(__file__).parent / "results"

INTRODUCTION = """\
# Resources of the CUDA kernels

Written by `make resources` from the extension: {mb:.2f} MB, of which {device_mb:.2f} MB are device code for
{machine_code}, with PTX for {ptx}.

- In an architecture's column: registers of a thread / resident warps of a multiprocessor, which its
  registers, static shared memory and blocks of *threads* (the launch bound) allow. An SM's most:
  {most}.
- *local*: bytes of stack and accesses to local memory, which spills and indexed arrays cause.
- *shared*: static bytes of a block. *load*, *reduce*: the widest load from and sum into global memory of one
  lane, in bits. *flight*: the most loads from global memory that are issued before one's result is
  used, in code without jumps. Ranges span the architectures.
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks resources", description="Resource report of the CUDA kernels."
    )
    parser.add_argument("extension", type=Path, nargs="?", help="default: the installed detr_fast._C")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    binary = options.extension or Path(str(extension().__file__))
    build, kernels = describe_build(binary), read_kernels(binary)
    if not kernels:
        parser.exit(1, f"{binary} holds no CUDA kernels: was it built without nvcc?\n")

    machine = describe_machine()
    about = {"commit": machine["commit"], "date": machine["date"], **build}
    rows = ",\n".join(json.dumps(asdict(kernel)) for kernel in kernels)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "resources.json"
    path.write_text(f'{{"build": {json.dumps(about)},\n"kernels": [\n{rows}\n]}}\n')
    path.with_suffix(".md").write_text(report(build, kernels))
    print(f"{len(kernels)} kernels: {path} and {path.with_suffix('.md')}")
    return 0


def report(build: dict[str, Any], kernels: list[Kernel]) -> str:
    """Markdown: a section for each operator, a row for each kernel, a column for each architecture."""
    architectures = build["machine_code"]
    text = INTRODUCTION.format(
        mb=build["bytes"] / 1e6,
        device_mb=build["device_code_bytes"] / 1e6,
        machine_code=", ".join(architectures),
        ptx=", ".join(build["ptx"]) or "none",
        most=", ".join(f"{LIMITS[name].warps} ({name})" for name in architectures if name in LIMITS),
    )
    columns = ["kernel", "threads", "local", "shared", "load", "flight", "reduce", *architectures]
    for operator, of_operator in groupby(kernels, lambda kernel: kernel.operator):
        text += f"\n## {operator}\n\n| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}\n"
        for name, same_name in groupby(of_operator, lambda kernel: kernel.name):
            text += f"| {' | '.join(_row(name, list(same_name), architectures))} |\n"
    return text


def _row(name: str, kernels: list[Kernel], architectures: list[str]) -> list[str]:
    stack, accesses = max(k.stack_bytes for k in kernels), max(k.local_accesses for k in kernels)
    cells = {k.architecture: f"{k.registers} / {k.warps_per_sm or '?'}" for k in kernels}
    return [
        f"`{name}`",
        _span(k.threads for k in kernels),
        f"{stack} B, {accesses} accesses" if stack or accesses else "none",
        _span(k.shared_bytes for k in kernels),
        _span(k.load_bits for k in kernels),
        _span(k.loads_in_flight for k in kernels),
        _span(k.reduce_bits for k in kernels),
        *(cells.get(architecture, "") for architecture in architectures),
    ]


def _span(values: Iterable[int]) -> str:
    found = sorted(values)
    return "-".join(map(str, dict.fromkeys([found[0], found[-1]])))
