"""A run as lines, a JSON file and, on a GPU, Markdown; what its goals came to; reports joined."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
COLUMNS = "case | contender | kernel us | floor us | x floor | gather us | wall us | call us | / ours"
PAIR_KEY = ("operator", "case", "pass", "threads", "peer")
KEY = ("operator", "case", "dtype", "form", "pass", "contender")


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
        report["rates"] = {
            "copy_bytes_per_s": runner.rates.copy,
            "cached_copy_bytes_per_s": runner.rates.cached_copy,
            "rotated_over_bytes": runner.clock.cache_bytes,
            "product_flops_per_s": runner.rates.products,
        }

    def write() -> None:
        # described late: only then are the OpenMP runtimes of all peers in the process
        about = {**describe_machine(), **describe_gpu(runner.device), "device": plan.device, "seed": SEED}
        report["machine"] = {**about, **clocks}
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    echo(_line(PAIR_COLUMNS) if plan.paired else f"contenders alone on {plan.device}")
    for row in runner.run():
        if rows and row["case"] != rows[-1]["case"]:
            write()
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
        held = [row for row in rows if "goal" in row]
        reached = [row for row in held if row["ratio"] is not None and row["ratio"] >= row["goal"]]
        echo(f"{len(reached)} of {len(held)} goals reached; ratio = peer time / ours, medians")
    else:
        clocks["clocks_after"] = read_clocks()
        report["goals"] = judge(rows)
        for goal in report["goals"]:
            what, limit, measured, verdict = cells(goal)
            echo(f"goal {verdict}: {what}: {limit}" + (f", measured {measured}" if measured else ""))
    write()
    if json_path is not None:
        echo(f"written: {json_path}")
    return report


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Rows over all cases of a suite."""
    return [row for suite in all_suites() for row in suite.summary(rows)]


def judge(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """[{"goal", "unit", "at_most" or "at_least", "measured" (None where a row is absent), "verdict"}]."""
    found = []
    for suite in all_suites():
        for goal in suite.gpu_goals([row for row in rows if row["operator"] == suite.operator]):
            verdict = "not measured"
            if goal.measured is not None:
                over = goal.measured - goal.limit
                verdict = "met" if (over <= 0 if goal.bound == "at_most" else over >= 0) else "missed"
            limit = {"unit": goal.unit, goal.bound: goal.limit}
            found.append({"goal": goal.goal, **limit, "measured": goal.measured, "verdict": verdict})
    return found


def cells(goal: dict[str, Any]) -> tuple[str, str, str, str]:
    """What, its limit, what was measured (empty where nothing was) and the verdict."""
    limit = f"<= {goal['at_most']:g}" if "at_most" in goal else f">= {goal['at_least']:g}"
    measured = "" if goal["measured"] is None else f"{goal['measured']:.3g} {goal['unit']}"
    return goal["goal"], f"{limit} {goal['unit']}", measured, goal["verdict"]


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of runs that were made in pieces on one machine; a later row replaces an earlier one.

    The machine is the last piece's, with the commits of all.
    """
    if len({report["machine"].get("gpu", report["machine"]["cpu"]) for report in reports}) != 1:
        raise ValueError("the pieces come from different machines")
    paired = "rates" not in reports[0]
    key = PAIR_KEY if paired else KEY
    rows = {tuple(row[name] for name in key): row for report in reports for row in report["rows"]}
    if paired:
        rows |= {tuple(row[name] for name in key): row for row in summaries(list(rows.values()))}
    commits = sorted({str(report["machine"]["commit"]) for report in reports})
    merged = {**reports[-1], "rows": list(rows.values())}
    merged["machine"] = {**reports[-1]["machine"], "commit": ", ".join(commits)}
    if paired:
        merged["missing_peers"] = {k: v for report in reports for k, v in report["missing_peers"].items()}
    else:
        merged["goals"] = judge(merged["rows"])
    return merged


def format_row(row: Row) -> str:
    """One row as a line."""
    reason = why_untimed(row)
    if "peer" in row:
        what = [row["operator"], row["case"], row["pass"], str(row["threads"]), row["peer"]]
        if reason:
            return f"{_line(what)}  {reason}"
        what += [f"{row[key]:.3g}" if key in row else "" for key in ("ours_ms", "peer_ms")]
        what.append(f"{row['ratio']:.1f}x")
        if "goal" in row:
            what.append(f"{row['goal']:.0f}x {'met' if row['ratio'] >= row['goal'] else 'missed'}")
        return _line(what)
    start = f"{row['operator']:17} {row['case']:24} {row['dtype']:14} {row['form']:5} {row['pass']:16}"
    start = f"{start} {row['contender']:40}"
    if reason:
        return f"{start} {reason}"
    call = "" if row["call_us"] is None else f", call {row['call_us']:.1f} us"
    times = f"{row['kernel_us']:9.1f} us, {row['over_floor']:5.1f} x floor, wall {row['wall_us']:.1f} us"
    return f"{start} {times}{call}"


def _line(cells: Sequence[str]) -> str:
    padded = [
        c.ljust(w) if i < 5 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, PAIR_WIDTHS, strict=False))
    ]
    return " ".join(padded).rstrip()


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
        *(_table_line(cells(goal)) for goal in report["goals"]),
        "",
    ]
    missing = {row["contender"]: row["missing"] for row in rows if "missing" in row}
    lines += [f"- {name} is not usable here: {reason}" for name, reason in missing.items()]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        of_operator = [row for row in rows if row["operator"] == operator and "missing" not in row]
        if of_operator:
            lines += ["", f"### {operator}", "", f"| {COLUMNS} |", "|---|---|" + "---:|" * 7]
            lines += [_table_line(_cells(row, of_operator)) for row in of_operator]
    return "\n".join(lines) + "\n"


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    key = ("case", "dtype", "form", "pass")
    # of precision, form and pass what tells the operator's rows apart
    varied = (row[name] for name in key[1:] if len({r[name] for r in rows}) > 1)
    start = [", ".join([row["case"], *varied]), row["contender"]]
    if reason := why_untimed(row):
        return [*start, reason, *[""] * 6]
    times = {
        r["contender"]: r["kernel_us"]
        for r in rows
        if "kernel_us" in r and all(r[name] == row[name] for name in key)
    }
    ours = times.get(CUDA, times.get(TRITON))
    by = {"events": " (with gaps)", "wall": " (wall)"}.get(row["timed_by"], "")
    rest = (row["floor_us"], row["over_floor"], row.get("gather_us"), row["wall_us"], row["call_us"])
    numbers = ["" if value is None else f"{value:.1f}" for value in rest]
    over_ours = "" if ours is None else f"{row['kernel_us'] / ours:.2f}x"
    return [*start, f"{row['kernel_us']:.1f}{by}", *numbers, over_ours]


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
