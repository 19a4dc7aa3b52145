"""Peak memory of the mask criterion beside Mask2Former's own: resident memory of a process of its own."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.runner import SEED
from benchmarks.suite import FORWARD, FORWARD_BACKWARD, Row
from benchmarks.suites.mask_criterion import MOST_MASKS, Masks, contenders
from detr_fast.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def why_not() -> str | None:
    """Why peaks cannot be measured here, or None."""
    return None if _RESET.exists() else "peaks of resident memory are read from Linux's /proc"


def run(
    case: Masks = MOST_MASKS, passes: Sequence[str] = (FORWARD, FORWARD_BACKWARD), threads: int = 1
) -> list[Row]:
    """One row a pass, with ours_mib, peer_mib and their ratio, and the seconds that the calls took.

    MiB are those above the inputs; gradients of the inputs count. The forward pass keeps what backward needs.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    names = [contender.name for contender in contenders(case)]
    rows: list[Row] = []
    for pass_ in passes:
        (ours_mib, ours_s), (peer_mib, peer_s) = (
            _in_own_process(case, pass_, threads, which) for which in range(2)
        )
        row: Row = {"operator": "mask_criterion", "case": case.name, "pass": pass_, "threads": threads}
        row |= {"peer": names[1], "ours_mib": ours_mib, "peer_mib": peer_mib, "ratio": peer_mib / ours_mib}
        rows.append(row | {"ours_s": ours_s, "peer_s": peer_s})
    return rows


def _in_own_process(case: Masks, pass_: str, threads: int, which: int) -> tuple[float, float]:
    # glibc then gives every larger block back when it is freed, so that resident memory is memory in use
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, case, pass_, threads, which).result()


def _measure(case: Masks, pass_: str, threads: int, which: int) -> tuple[float, float]:
    """MiB at the peak above those before, and seconds, of a call after a small one."""
    torch.set_num_threads(threads)
    contender = contenders(case)[which]
    small = replace(case, targets=(2,), layers=2, queries=5, size=64)
    contender.prepare(small.inputs(torch.Generator().manual_seed(SEED)), pass_)()
    call = contender.prepare(case.inputs(torch.Generator().manual_seed(SEED)), pass_)
    gc.collect()
    _RESET.write_text("5")
    before = _mib("VmRSS")
    start = time.perf_counter()
    call()
    return _mib("VmHWM") - before, time.perf_counter() - start


def _mib(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json", metavar="FILE")
    path = parser.parse_args(arguments).json
    rows = run()
    for row in rows:
        print(
            f"{row['operator']} {row['case']}, {row['pass']}: ours {row['ours_mib']:.0f} MiB, "
            f"{row['peer']} {row['peer_mib']:.0f} MiB ({row['ratio']:.1f}x); "
            f"{row['ours_s']:.1f} s, {row['peer_s']:.1f} s on {row['threads']} thread"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows, "machine": describe_machine()}, indent=1) + "\n")
    print(f"written: {path}")
    return 0
