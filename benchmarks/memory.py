"""Peak memory of the mask criterion beside Mask2Former's own.

    python -m benchmarks.memory [--json FILE]

prints a line a pass and writes the rows with the machine (default: benchmarks/results/memory.json).
"""

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

from benchmarks.cases import FORWARD, FORWARD_BACKWARD, MOST_MASKS, MaskCase
from benchmarks.peers.masks import peers
from benchmarks.suite import SEED, Row
from detr_fast.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def why_not() -> str | None:
    """Why peaks cannot be measured here, or None."""
    return None if _RESET.exists() else "peaks of resident memory are read from Linux's /proc"


def run(
    case: MaskCase = MOST_MASKS, passes: Sequence[str] = (FORWARD, FORWARD_BACKWARD), threads: int = 1
) -> list[Row]:
    """One row a pass, with ours_mib, peer_mib and their ratio, and the seconds that the calls took.

    MiB are those above the inputs; gradients of the inputs count. The forward pass keeps what backward needs.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    rows: list[Row] = []
    (peer,) = peers()
    for pass_ in passes:
        (ours_mib, ours_s), (peer_mib, peer_s) = (
            _in_own_process(case, pass_, threads, official) for official in (False, True)
        )
        rows.append(
            {
                "operator": case.operator,
                "case": case.name,
                "pass": pass_,
                "threads": threads,
                "peer": peer.name,
                "ours_mib": ours_mib,
                "peer_mib": peer_mib,
                "ratio": peer_mib / ours_mib,
                "ours_s": ours_s,
                "peer_s": peer_s,
            }
        )
    return rows


def _in_own_process(case: MaskCase, pass_: str, threads: int, official: bool) -> tuple[float, float]:
    # glibc then gives every larger block back when it is freed, so that resident memory is memory in use
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, case, pass_, threads, official).result()


def _measure(case: MaskCase, pass_: str, threads: int, official: bool) -> tuple[float, float]:
    """MiB at the peak above those before, and seconds, of a call after a small one."""
    torch.set_num_threads(threads)
    (peer,) = peers()
    contender = peer.theirs if official else peer.ours
    small = replace(case, targets=(2,), layers=2, queries=5, size=64)
    contender.prepare(small.inputs(torch.Generator().manual_seed(SEED)), pass_, threads)()
    call = contender.prepare(case.inputs(torch.Generator().manual_seed(SEED)), pass_, threads)
    gc.collect()
    _RESET.write_text("5")
    before = _mib("VmRSS")
    start = time.perf_counter()
    call()
    return _mib("VmHWM") - before, time.perf_counter() - start


def _mib(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json")
    path = parser.parse_args().json
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


if __name__ == "__main__":
    main()
