"""The benchmark as `detr-fast bench` runs it: rows to a table and a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import SEED, Plan, Row, left_out_peers, median_rows, run
from detr_fast.machine import describe_machine

BUSY = 0.2  # share of samples beside another process from which a row is called disturbed
HEADER = ("operator", "case", "pass", "threads", "peer", "ours ms", "peer ms", "ratio", "goal")
WIDTHS = (17, 18, 16, 7, 42, 9, 9, 8, 10)


def quick_plan(operators: Sequence[str] | None = None) -> Plan:
    """The most telling comparisons on two threads (one where there is one core), within 50 seconds."""
    return Plan(
        threads=(min(2, os.cpu_count() or 1),),
        operators=operators,
        budget_s=0.12,
        min_rounds=2,
        max_rounds=9,
        patience_s=0.0,
        checked_queries=512,
        quick=True,
        deadline_s=43.0,
    )


def run_benchmarks(
    plan: Plan | None = None, json_path: Path | None = None, echo: Callable[[str], None] = print
) -> dict[str, Any]:
    """Runs `plan` (default: everything), tells `echo` one line a row, and writes the report as JSON.

    The report is {"rows": [{"operator", "case", "pass", "threads", "peer", "ours_ms", "peer_ms", "ratio",
    "goal"?, ...}], "missing_peers": {name: reason}, "machine": {...}}; ratio = peer time / ours.
    """
    plan = plan or Plan()
    rows: list[Row] = []
    echo(_line(HEADER))
    for row in run(plan):
        rows.append(row)
        echo(format_row(row))
    for row in median_rows(rows):
        rows.append(row)
        echo(format_row(row))
    missing = left_out_peers(plan)
    for name, reason in missing.items():
        echo(f"left out: {name} is not usable here: {reason}")
    report = {"rows": rows, "missing_peers": missing, "machine": {**describe_machine(), "seed": SEED}}
    disturbed = [row for row in rows if row.get("busy", 0) > BUSY]
    if disturbed:
        echo(f"{len(disturbed)} rows were measured while other processes ran: repeat them on a quiet machine")
    with_goal = [row for row in rows if "goal" in row]
    reached = [row for row in with_goal if row["ratio"] is not None and row["ratio"] >= row["goal"]]
    echo(f"{len(reached)} of {len(with_goal)} goals reached; ratio = peer time / ours, medians")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=1) + "\n")
        echo(f"written: {json_path}")
    return report


def format_row(row: Row) -> str:
    """One line of the table."""
    cells = [row["operator"], row["case"], row["pass"], str(row["threads"]), row["peer"]]
    if row["ratio"] is None:
        reasons = {"failed": "FAILED: ", "peer_failed": "peer failed: ", "left_out": "left out: "}
        return _line(cells) + "  " + "".join(text + row[key] for key, text in reasons.items() if key in row)
    cells += [f"{row[key]:.3g}" if key in row else "" for key in ("ours_ms", "peer_ms")]
    cells.append(f"{row['ratio']:.1f}x")
    if "goal" in row:
        cells.append(f"{row['goal']:.0f}x {'met' if row['ratio'] >= row['goal'] else 'missed'}")
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    padded = [
        c.ljust(w) if i < 5 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, WIDTHS, strict=False))
    ]
    return " ".join(padded).rstrip()
