"""A GPU run as a JSON file, and as a table that people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.contenders import CLASSIC, CUDA, TRITON
from benchmarks.gpu.goals import judge
from benchmarks.gpu.machine import describe_gpu, read_clocks
from benchmarks.gpu.matching_cases import QUICK_MATCHING_JOBS
from benchmarks.gpu.matching_goals import MATCHING_OPERATORS
from benchmarks.gpu.suite import SEED, GpuPlan, Row, Suite
from detr_fast.machine import describe_machine

REASONS = {"failed": "FAILED: ", "missing": "not usable here: ", "left_out": "left out: "}
COLUMNS = (
    "form",
    "pass",
    "contender",
    "kernel us",
    "floor us",
    "x floor",
    "gather us",
    "call us",
    "classic /",
)
MATCHING_COLUMNS = ("case", "contender", "kernel us", "floor us", "x floor", "wall us", "/ ours")


def quick_gpu_plan() -> GpuPlan:
    """The weightiest cases, within 50 seconds."""
    return GpuPlan(matching=QUICK_MATCHING_JOBS, budget_s=0.1, checked_queries=128, deadline_s=40.0)


def run_gpu_benchmarks(
    plan: GpuPlan | None = None, json_path: Path | None = None, echo: Callable[[str], None] = print
) -> dict[str, Any]:
    """Runs `plan` (default: everything, four minutes), tells `echo` a line a row, writes the report as JSON.

    The report is {"rows": [...], "goals": [...], "rates": {...}, "machine": {...}}. It is written after every
    case, so that a run that is cut off leaves what it measured.
    """
    plan = plan or GpuPlan()
    before = read_clocks()
    suite = Suite(plan)
    report: dict[str, Any] = {
        "rows": [],
        "goals": [],
        "rates": {
            "copy_bytes_per_s": suite.rates[0],
            "cached_copy_bytes_per_s": suite.rates[1],
            "rotated_over_bytes": suite.clock.cache_bytes,
            "product_flops_per_s": suite.product_rates,
        },
        "machine": {
            **describe_machine(),
            **describe_gpu(suite.device),
            "device": plan.device,
            "clocks_before": before,
            "seed": SEED,
        },
    }
    rows: list[Row] = report["rows"]
    for row in suite.run():
        if rows and row["case"] != rows[-1]["case"] and json_path is not None:
            _write(json_path, report)
        rows.append(row)
        echo(format_row(row))
    report["goals"] = judge(rows)
    report["machine"]["clocks_after"] = read_clocks()
    for goal in report["goals"]:
        echo(format_goal(goal))
    if json_path is not None:
        _write(json_path, report)
        echo(f"written: {json_path}")
    return report


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def format_row(row: Row) -> str:
    """One row as a line."""
    text = f"{row['case']:17} {row['dtype']:14} {row['form']:5} {row['pass']:8} {row['contender']:46}"
    if reason := why_untimed(row):
        return f"{text} {reason}"
    text = f"{text} {row['kernel_us']:9.1f} us, {row['over_floor']:5.1f} x floor"
    if "wall_us" in row:
        return f"{text}, wall {row['wall_us']:.1f} us"
    return text if row["call_us"] is None else f"{text}, call {row['call_us']:.1f} us"


def format_goal(goal: dict[str, Any]) -> str:
    """One goal as a line."""
    bound = "at_most" if "at_most" in goal else "at_least"
    measured = "" if goal["measured"] is None else f", measured {goal['measured']:.3g} {goal['unit']}"
    limit = f"{bound.replace('_', ' ')} {goal[bound]:g} {goal['unit']}"
    return f"goal {goal['verdict']}: {goal['goal']}: {limit}{measured}"


def why_untimed(row: Row) -> str:
    """Why a row has no time; empty where it has one."""
    return "".join(text + row[key] for key, text in REASONS.items() if key in row)


def markdown(report: dict[str, Any]) -> str:
    """Goals, then one table for each case and precision."""
    machine, rates = report["machine"], report["rates"]
    memory, cache = (rates[key] / 1e9 for key in ("copy_bytes_per_s", "cached_copy_bytes_per_s"))
    products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates["product_flops_per_s"].items())
    lines = [
        f"{machine.get('gpu', machine['cpu'])}, torch {machine['versions']['torch']}, "
        f"commit {machine['commit']}, {machine['date']}. Copies in device memory: {memory:.0f} GB/s, "
        f"in the L2 cache: {cache:.0f} GB/s (bytes read and written).",
        "",
        "Floor: each input read once, each output written once, at the copy rate, or matrix products and"
        f" convolutions at the rate of a large product ({products} TFLOP/s) where that takes longer."
        " Gather: rows read from (and added to) the caches, at the cached rate. Classic:"
        " time of torch-ms-deform-attn over this one's.",
        "",
        "| goal | limit | measured | |",
        "|---|---|---|---|",
    ]
    for goal in report["goals"]:
        bound = "at_most" if "at_most" in goal else "at_least"
        sign = "<=" if bound == "at_most" else ">="
        measured = "" if goal["measured"] is None else f"{goal['measured']:.3g} {goal['unit']}"
        lines.append(
            f"| {goal['goal']} | {sign} {goal[bound]:g} {goal['unit']} | {measured} | {goal['verdict']} |"
        )
    missing = {row["contender"]: row["missing"] for row in report["rows"] if "missing" in row}
    lines += ["", *(f"- {name} is not usable here: {reason}" for name, reason in missing.items())]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in report["rows"]:
        if "missing" in row or row["operator"] in MATCHING_OPERATORS:
            continue
        groups.setdefault((row["case"], row["dtype"]), []).append(row)
    for (case, dtype), rows in groups.items():
        lines += ["", f"### {case}, {dtype}", "", _table_line(COLUMNS), "|---|---|---|" + "---:|" * 6]
        lines += [_table_line(_cells(row, rows)) for row in rows]
    lines += _matching_tables(report["rows"])
    return "\n".join(lines) + "\n"


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    cells = [row["form"], row["pass"], row["contender"]]
    if reason := why_untimed(row):
        return [*cells, reason, "", "", "", "", ""]
    classic = next(
        (
            other["kernel_us"]
            for other in rows
            if other["contender"].startswith(CLASSIC)
            and (other["form"], other["pass"]) == (row["form"], row["pass"])
            and "kernel_us" in other
        ),
        None,
    )
    by = "" if row["timed_by"] != "events" else " (with gaps)"
    return [
        *cells,
        f"{row['kernel_us']:.1f}{by}",
        f"{row['floor_us']:.1f}",
        f"{row['over_floor']:.1f}",
        f"{row['gather_us']:.1f}",
        "" if row["call_us"] is None else f"{row['call_us']:.1f}",
        "" if classic is None else f"{classic / row['kernel_us']:.2f}x",
    ]


def _matching_tables(rows: Sequence[Row]) -> list[str]:
    """One table for each operator of matching."""
    lines: list[str] = []
    for operator in MATCHING_OPERATORS:
        of_operator = [row for row in rows if row["operator"] == operator and "missing" not in row]
        if of_operator:
            lines += ["", f"### {operator}", "", _table_line(MATCHING_COLUMNS), "|---|---|" + "---:|" * 5]
            lines += [_table_line(_matching_cells(row, of_operator)) for row in of_operator]
    return lines


def _matching_cells(row: Row, rows: Sequence[Row]) -> list[str]:
    key = ("case", "dtype", "pass")
    same = [r for r in rows if all(r[name] == row[name] for name in key)]
    # of precision and pass what tells the operator's rows apart
    varied = (row[name] for name in key[1:] if len({r[name] for r in rows}) > 1)
    cells = [", ".join([row["case"], *varied]), row["contender"]]
    if reason := why_untimed(row):
        return [*cells, reason, "", "", "", ""]
    by_name = {r["contender"]: r["kernel_us"] for r in same if "kernel_us" in r}
    ours = by_name.get(CUDA, by_name.get(TRITON))
    by = {"events": " (with gaps)", "wall": " (wall)"}.get(row["timed_by"], "")
    return [
        *cells,
        f"{row['kernel_us']:.1f}{by}",
        f"{row['floor_us']:.1f}",
        f"{row['over_floor']:.1f}",
        f"{row['wall_us']:.1f}",
        "" if ours is None else f"{row['kernel_us'] / ours:.2f}x",
    ]


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
