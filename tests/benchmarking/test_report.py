"""Timing arithmetic, report rows and the chart."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.cases import ASSIGNMENT, CASES, AssignmentCase, AttentionCase
from benchmarks.goals import goal
from benchmarks.peers import all_peers
from benchmarks.report import quick_plan, run_benchmarks
from benchmarks.suite import Plan, median_rows, run
from benchmarks.timing import Timing, interleaved
from detr_fast.machine import describe_machine, shares_openmp_with_torch, torch_threads

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = (
    AttentionCase("tiny", 1, None, ((6, 5), (3, 2)), heads=2, channels=8, points=2),
    AssignmentCase(9, 3, "random", images=2),
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(report, "run", lambda plan: run(plan, TINY))
    out = tmp_path / "results" / "tiny.json"
    returned = run_benchmarks(Plan(threads=(1,), budget_s=0, patience_s=0), out, echo=lambda line: None)
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(returned))
    return written


def test_ratio_is_peer_time_over_ours() -> None:
    assert Timing(ours_ms=2.0, peer_ms=30.0, ours_spread=0, peer_spread=0, rounds=3, busy=0).ratio == 15.0


def test_interleaved_samples_alternate_and_count() -> None:
    calls: list[str] = []

    def slow(name: str) -> None:
        calls.append(name)
        time.sleep(0.06)

    timing = interleaved(lambda: slow("a"), lambda: slow("b"), budget_s=0, min_rounds=2, first_s=(0.06, 0.06))
    assert calls == ["a", "b", "a", "b"]
    assert timing.rounds == 2
    assert timing.ours_ms >= 60
    assert timing.peer_ms >= 60


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    list(run(Plan(threads=(before + 1,), budget_s=0, patience_s=0), TINY[1:]))
    assert torch.get_num_threads() == before


def test_report_rows(tiny_report: dict[str, Any]) -> None:
    rows = tiny_report["rows"]
    timed = [row for row in rows if not row["case"].startswith("median")]
    usable = {
        p.name for p in all_peers() if p.operator in ("ms_deform_attn", "linear_assignment") and not p.missing
    }
    assert {row["peer"] for row in timed} == usable
    for row in timed:
        assert not {"failed", "peer_failed"} & row.keys(), row
        assert {
            "operator",
            "case",
            "pass",
            "threads",
            "peer",
            "rounds",
            "ours_spread",
            "peer_spread",
        } <= row.keys()
        assert row["threads"] == 1
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    assert {row["pass"] for row in timed if row["operator"] == "ms_deform_attn"} == {
        "forward",
        "forward+backward",
    }
    machine = tiny_report["machine"]
    assert {
        "device",
        "cpu",
        "cores",
        "isa",
        "versions",
        "commit",
        "date",
        "openmp_runtimes",
        "seed",
    } <= machine.keys()
    assert machine["versions"]["torch"] == torch.__version__


def test_every_line_of_the_table_is_told(tiny_report: dict[str, Any]) -> None:
    for row in tiny_report["rows"]:
        assert row["peer"] in report.format_row(row)
    failed = {"operator": "o", "case": "c", "pass": "p", "threads": 1, "peer": "x", "ratio": None}
    assert report.format_row({**failed, "failed": "wrong"}).endswith("FAILED: wrong")
    assert report.format_row({**failed, "left_out": "time was up"}).endswith("left out: time was up")
    assert report.format_row({**failed, "peer_failed": "crash"}).endswith("peer failed: crash")
    assert report.format_row({**failed, "ratio": 12.0, "goal": 10.0}).endswith("10x met")
    assert report.format_row({**failed, "ratio": 9.0, "goal": 10.0}).endswith("10x missed")


def test_a_deadline_leaves_rows_out() -> None:
    rows = list(run(Plan(threads=(1,), deadline_s=0.0), TINY))
    assert rows
    assert all(row["ratio"] is None and row["left_out"] == "time was up" for row in rows)


def test_median_over_the_assignment_cases() -> None:
    def row(case: str, ratio: float | None) -> dict[str, Any]:
        peer = "scipy, (Q, T) matrices"
        return {"operator": "linear_assignment", "case": case, "peer": peer, "threads": 2, "ratio": ratio}

    (median,) = median_rows([row("1x1 random", 1.0), row("a", 3.0), row("b", 20.0), row("c", 5.0)])
    assert median["ratio"] == 5.0
    assert median["goal"] == 10.0
    assert median["case"] == "median of 3 cases"
    assert median_rows([row("a", 3.0), row("b", None)]) == []


def test_goals_name_cases_and_peers_that_exist() -> None:
    found = {
        (case.operator, case.name, pass_, peer.name)
        for case in CASES
        for pass_ in case.passes
        for peer in all_peers()
        if peer.operator == case.operator and goal(case.operator, case.name, pass_, peer.name, 2) is not None
    }
    # 4 attention cases x 2 passes x 2 peers, 18 assignment cases x 2 peers, 3 matcher cases
    assert len(found) == 16 + 36 + 3
    assert len(ASSIGNMENT) == 18 + 1
    assert goal("linear_assignment", "100x7 random", "forward", "scipy, (Q, T) matrices", 1) is None


def test_quick_plan_is_bounded() -> None:
    plan = quick_plan(["matcher"])
    assert plan.quick
    assert plan.deadline_s <= 45
    assert plan.operators == ["matcher"]
    with pytest.raises(ValueError, match=r"operators: expected some of .*; got 'softmax'"):
        quick_plan(["softmax"])


def test_machine_shares_one_openmp_runtime_with_torch() -> None:
    machine = describe_machine()
    assert machine["openmp_shared_with_torch"] == shares_openmp_with_torch()
    assert shares_openmp_with_torch() in (True, None)
    assert not any(str(Path.home()) in str(value) for value in machine.values())


def test_chart_and_merge(tiny_report: dict[str, Any], tmp_path: Path) -> None:
    plot, merge = script("plot"), script("merge")
    rows = [
        {"operator": operator, "case": case, "pass": pass_, "threads": 2, "peer": peer, "ratio": 7.0}
        for _, operator, passes, peers, cases in plot.PANELS
        for case in cases
        for pass_ in passes
        for peer in peers
    ]
    merged = merge.merge([{**tiny_report, "rows": rows[:1]}, {**tiny_report, "rows": rows}])
    assert [row for row in merged["rows"] if not row["case"].startswith("median")] == rows
    plot.draw(merged, 2, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no rows"):
        plot.draw(merged, 3, tmp_path / "none.png")


def test_chart_reads_pytest_benchmark_results() -> None:
    def entry(contender: str, median: float) -> dict[str, Any]:
        info = {"operator": "matcher", "case": "c", "pass": "forward", "threads": 1, "contender": contender}
        return {"group": "g", "extra_info": info, "stats": {"median": median}}

    entries = [
        entry("detr_fast", 2.0),
        entry("detr_fast, fused form", 1.0),
        entry("a", 6.0),
        entry("a, fused form", 5.0),
    ]
    rows = script("plot").read_rows({"benchmarks": entries})
    assert {row["peer"]: row["ratio"] for row in rows} == {"a": 3.0, "a, fused form": 5.0}
