"""A run as a table, a JSON file and, on a GPU, Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.clocks import describe_gpu, read_clocks
from benchmarks.runner import SEED, Plan, Runner
from benchmarks.suite import CUDA, TRITON, Row, Suite, all_suites
from detr_fast.machine import describe_machine

BUSY = 0.2  # share of samples beside another process from which a row is called disturbed
REASONS = {
    "failed": "FAILED: ",
    "peer_failed": "peer failed: ",
    "missing": "not usable here: ",
    "left_out": "left out: ",
}
PAIR_COLUMNS = ("operator", "case", "pass", "threads", "peer", "ours ms", "peer ms", "ratio", "goal")
PAIR_WIDTHS = (17, 24, 16, 7, 42, 9, 9, 8, 10)
COLUMNS = (
    "case",
    "contender",
    "kernel us",
    "floor us",
    "x floor",
    "gather us",
    "wall us",
    "call us",
    "/ ours",
)
KEY = ("operator", "case", "pass", "threads", "peer")


def run_benchmarks(
    plan: Plan,
    json_path: Path | None = None,
    echo: Callable[[str], None] = print,
    suites: Sequence[Suite] | None = None,
) -> dict[str, Any]:
    """Runs `plan`, tells `echo` a line a row, and writes the report as JSON.

    The report is {"rows": [...], "machine": {...}}, of pairs with "missing_peers" {name: reason}, of
    contenders alone with "goals" and "rates". See `Runner.run` for the rows. It is written after every case,
    so that a run that is cut off leaves what it measured.
    """
    clocks = {} if plan.paired else {"clocks_before": read_clocks()}
    runner = Runner(plan, suites)
    rows: list[Row] = []
    report: dict[str, Any] = {"rows": rows}
    if not plan.paired:
        report["goals"] = []
        report["rates"] = {
            "copy_bytes_per_s": runner.rates.copy,
            "cached_copy_bytes_per_s": runner.rates.cached_copy,
            "rotated_over_bytes": runner.clock.cache_bytes,
            "product_flops_per_s": runner.rates.products,
        }

    def describe() -> None:
        """Called late: only then are the OpenMP runtimes of all peers in the process."""
        gpu = describe_gpu(plan.device)
        report["machine"] = {**describe_machine(), **gpu, "device": plan.device, "seed": SEED, **clocks}

    echo(_line(PAIR_COLUMNS) if plan.paired else f"contenders alone on {plan.device}")
    for row in runner.run():
        if json_path is not None and rows and row["case"] != rows[-1]["case"]:
            describe()
            _write(json_path, report)
        rows.append(row)
        echo(format_row(row))
    if plan.paired:
        for row in summaries(rows):
            rows.append(row)
            echo(format_row(row))
        report["missing_peers"] = runner.missing()
        for name, reason in report["missing_peers"].items():
            echo(f"left out: {name} is not usable here: {reason}")
        if disturbed := sum(row.get("busy", 0) > BUSY for row in rows):
            echo(f"{disturbed} rows were measured while other processes ran: repeat them on a quiet machine")
        echo(goals.summary(rows))
    else:
        clocks["clocks_after"] = read_clocks()
        report["goals"] = goals.judge(rows)
        for goal in report["goals"]:
            echo(format_goal(goal))
    describe()
    if json_path is not None:
        _write(json_path, report)
        echo(f"written: {json_path}")
    return report


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Rows over all cases of a suite."""
    return [row for suite in all_suites() for row in suite.summary(rows)]


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of paired runs that were made in pieces; a later piece's row replaces an earlier one's.

    The machine is the last piece's, with the commits of all.
    """
    if len({report["machine"]["cpu"] for report in reports}) != 1:
        raise ValueError("the pieces come from different machines")
    rows = {tuple(row[key] for key in KEY): row for report in reports for row in report["rows"]}
    rows |= {tuple(row[key] for key in KEY): row for row in summaries(list(rows.values()))}
    commits = sorted({str(report["machine"]["commit"]) for report in reports})
    return {
        "rows": list(rows.values()),
        "missing_peers": {name: why for report in reports for name, why in report["missing_peers"].items()},
        "machine": {**reports[-1]["machine"], "commit": ", ".join(commits)},
    }


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def format_row(row: Row) -> str:
    """One row as a line."""
    return _format_pair(row) if "peer" in row else _format_alone(row)


def _format_pair(row: Row) -> str:
    cells = [row["operator"], row["case"], row["pass"], str(row["threads"]), row["peer"]]
    if row["ratio"] is None:
        return f"{_line(cells)}  {why_untimed(row)}"
    cells += [f"{row[key]:.3g}" if key in row else "" for key in ("ours_ms", "peer_ms")]
    cells.append(f"{row['ratio']:.1f}x")
    if "goal" in row:
        cells.append(f"{row['goal']:.0f}x {'met' if row['ratio'] >= row['goal'] else 'missed'}")
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    padded = [
        c.ljust(w) if i < 5 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, PAIR_WIDTHS, strict=False))
    ]
    return " ".join(padded).rstrip()


def _format_alone(row: Row) -> str:
    key = f"{row['operator']:17} {row['case']:24} {row['dtype']:14} {row['form']:5} {row['pass']:16}"
    text = f"{key} {row['contender']:40}"
    if reason := why_untimed(row):
        return f"{text} {reason}"
    text = (
        f"{text} {row['kernel_us']:9.1f} us, {row['over_floor']:5.1f} x floor, wall {row['wall_us']:.1f} us"
    )
    return text if row["call_us"] is None else f"{text}, call {row['call_us']:.1f} us"


def format_goal(goal: dict[str, Any]) -> str:
    """One goal as a line."""
    what, limit, measured, verdict = goals.cells(goal)
    return f"goal {verdict}: {what}: {limit}" + (f", measured {measured}" if measured else "")


def why_untimed(row: Row) -> str:
    """Why a row has no time; empty where it has one."""
    return "".join(text + row[key] for key, text in REASONS.items() if key in row)


def markdown(report: dict[str, Any]) -> str:
    """A GPU run: goals, then one table for each operator."""
    machine, rates, rows = report["machine"], report["rates"], report["rows"]
    memory, cache = (rates[key] / 1e9 for key in ("copy_bytes_per_s", "cached_copy_bytes_per_s"))
    products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates["product_flops_per_s"].items())
    lines = [
        f"{machine.get('gpu', machine['cpu'])}, torch {machine['versions']['torch']}, "
        f"commit {machine['commit']}, {machine['date']}. Copies in device memory: {memory:.0f} GB/s, "
        f"in the L2 cache: {cache:.0f} GB/s (bytes read and written).",
        "",
        "Floor: each input read once, each output written once, at the copy rate, or matrix products and"
        f" convolutions at the rate of a large product ({products} TFLOP/s) where that takes longer."
        " Gather: rows read from (and added to) the caches, at the cached rate. / ours: over our time.",
        "",
        "| goal | limit | measured | |",
        "|---|---|---|---|",
        *(_table_line(goals.cells(goal)) for goal in report["goals"]),
        "",
    ]
    missing = {row["contender"]: row["missing"] for row in rows if "missing" in row}
    lines += [f"- {name} is not usable here: {reason}" for name, reason in missing.items()]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        of_operator = [row for row in rows if row["operator"] == operator and "missing" not in row]
        if of_operator:
            lines += ["", f"### {operator}", "", _table_line(COLUMNS), "|---|---|" + "---:|" * 7]
            lines += [_table_line(_cells(row, of_operator)) for row in of_operator]
    return "\n".join(lines) + "\n"


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    key = ("case", "dtype", "form", "pass")
    # of precision, form and pass what tells the operator's rows apart
    varied = (row[name] for name in key[1:] if len({r[name] for r in rows}) > 1)
    cells = [", ".join([row["case"], *varied]), row["contender"]]
    if reason := why_untimed(row):
        return [*cells, reason, *[""] * 6]
    same = [r for r in rows if all(r[name] == row[name] for name in key)]
    times = {r["contender"]: r["kernel_us"] for r in same if "kernel_us" in r}
    ours = times.get(CUDA, times.get(TRITON))
    by = {"events": " (with gaps)", "wall": " (wall)"}.get(row["timed_by"], "")
    rest = (row["floor_us"], row["over_floor"], row.get("gather_us"), row["wall_us"], row["call_us"])
    return [
        *cells,
        f"{row['kernel_us']:.1f}{by}",
        *("" if value is None else f"{value:.1f}" for value in rest),
        "" if ours is None else f"{row['kernel_us'] / ours:.2f}x",
    ]


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
