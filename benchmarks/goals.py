"""What the operators are held to: ratios on a CPU stand in its rows, a GPU run is judged at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.suite import Goal, Row, all_suites

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
SIGNS = {"at_most": "<=", "at_least": ">="}


def judge(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """[{"goal", "unit", "at_most" or "at_least", "measured" (None where a row is absent), "verdict"}]."""
    return [
        _verdict(goal)
        for suite in all_suites()
        for goal in suite.gpu_goals([row for row in rows if row["operator"] == suite.operator])
    ]


def _verdict(goal: Goal) -> dict[str, Any]:
    if goal.measured is None:
        verdict = NOT_MEASURED
    else:
        reached = goal.measured <= goal.limit if goal.bound == "at_most" else goal.measured >= goal.limit
        verdict = MET if reached else MISSED
    return {
        "goal": goal.goal,
        "unit": goal.unit,
        goal.bound: goal.limit,
        "measured": goal.measured,
        "verdict": verdict,
    }


def cells(goal: dict[str, Any]) -> tuple[str, str, str, str]:
    """What, its limit, what was measured (empty where nothing was) and the verdict."""
    bound = next(name for name in SIGNS if name in goal)
    measured = "" if goal["measured"] is None else f"{goal['measured']:.3g} {goal['unit']}"
    return goal["goal"], f"{SIGNS[bound]} {goal[bound]:g} {goal['unit']}", measured, goal["verdict"]


def summary(rows: Sequence[Row]) -> str:
    """How many goals the rows of a CPU run reach."""
    held = [row for row in rows if "goal" in row]
    reached = [row for row in held if row["ratio"] is not None and row["ratio"] >= row["goal"]]
    return f"{len(reached)} of {len(held)} goals reached; ratio = peer time / ours, medians"
