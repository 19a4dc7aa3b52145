"""What matching on an H100 is held to, judged on the rows of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.contenders import CUDA
from benchmarks.gpu.matching_cases import IMAGES
from benchmarks.gpu.matching_contenders import BIRDER, OFFICIAL, SCIPY, TORCH_LINEAR_ASSIGNMENT

Row = dict[str, Any]
Goal = tuple[str, str, str, float, "float | None"]
MATCHING_OPERATORS = (
    "linear_assignment",
    "matcher",
    "criterion",
    "mask_criterion",
    "mask_match_cost",
    "point_sample",
    "class_loss",
    "box_loss",
    "model",
)
STEP = "L=6 B=16 Q=300"


def matching_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """(goal, unit, at_most or at_least, limit, measured)"""
    times = _times(rows)
    for images in IMAGES:
        for title, peers, limit in (
            ("best peer on the device / ours", (TORCH_LINEAR_ASSIGNMENT, BIRDER), 5.0),
            ("scipy with copies / ours", (SCIPY,), 50.0),
        ):
            measured, where = _worst_assignment(times, images, peers)
            yield f"assignment B={images}, {title}, worst case{where}", "x", "at_least", limit, measured
    early = times.get(("linear_assignment", "900x300 early B=16", CUDA, "kernel_us"))
    yield "assignment 900x300 early B=16", "us", "at_most", 2000.0, early
    yield f"matcher {STEP}", "us", "at_most", 500.0, times.get(("matcher", STEP, CUDA, "kernel_us"))
    ours, official = (times.get(("criterion", STEP, name, "wall_us")) for name in (CUDA, OFFICIAL))
    yield f"criterion {STEP}, forward and backward, wall", "us", "at_most", 3000.0, ours
    ratio = None if ours is None or official is None else official / ours
    yield f"criterion {STEP}, {OFFICIAL} / ours, wall", "x", "at_least", 10.0, ratio


def _times(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], float]:
    return {
        (row["operator"], row["case"], row["contender"], what): row[what]
        for row in rows
        for what in ("kernel_us", "wall_us")
        if what in row
    }


def _worst_assignment(
    times: dict[tuple[str, str, str, str], float], images: int, peers: Sequence[str]
) -> tuple[float | None, str]:
    """The least ratio of the fastest of `peers` to ours, and where it was found."""
    found = []
    for (operator, case, contender, what), ours in times.items():
        if (operator, contender, what) != ("linear_assignment", CUDA, "kernel_us"):
            continue
        of_peers = [times.get((operator, case, peer, what)) for peer in peers]
        measured = [time for time in of_peers if time is not None]
        if case.endswith(f" B={images}") and measured:
            found.append((min(measured) / ours, case))
    worst, where = min(found, default=(None, ""))
    return worst, f" ({where}, of {len(found)})" if found else ""
