"""Runs of both kinds at tiny sizes, their rows and reports; CUDA kernels run on the host."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_suites, memory, plot, runner
from benchmarks.__main__ import main
from benchmarks.peers.gpu_assignment import BIRDER, TORCH_LINEAR_ASSIGNMENT
from benchmarks.report import format_row, markdown, merge, run_benchmarks
from benchmarks.runner import Plan, Runner
from benchmarks.suite import BACKWARD, CUDA, FORWARD_BACKWARD, TRITON, Row, all_suites
from benchmarks.suites.detection import OFFICIAL, PLAIN_PYTORCH
from benchmarks.suites.linear_assignment import AUCTION, SCIPY, SCIPY_ON_HOST, median_rows
from benchmarks.suites.mask_criterion import OFFICIAL as OFFICIAL_MASKS
from benchmarks.suites.mask_criterion import Masks
from benchmarks.suites.mask_match_cost import BATCHED
from benchmarks.suites.ms_deform_attn import DETERMINISTIC, FUSED_FORM, GRID_SAMPLE
from detr_fast.extension import extension
from detr_fast.machine import describe_machine
from detr_fast.ops import OPERATORS
from tests.benchmarking.conftest import TINY
from tests.ops.simulated import simulated

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PAIRED = Plan(threads=(1,), budget_s=0, patience_s=0)
ALONE = Plan(paired=False, budget_s=0.01, checked_queries=20)


def silent(line: str) -> None: ...


@pytest.fixture
def host() -> Iterator[None]:
    """The CUDA kernels of the matcher's operators serve the CPU."""
    with ExitStack() as stack:
        for operator in OPERATORS:
            if operator.name in ("box_match_cost", "linear_assignment"):
                stack.enter_context(simulated(operator, "host"))
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("pairs") / "results" / "tiny.json"
    suites = [suite for operator, suite in TINY.items() if operator != "model"]
    returned = run_benchmarks(PAIRED, out, silent, suites)
    written: dict[str, Any] = json.loads(out.read_text())
    assert written == json.loads(json.dumps(returned))
    return written


def test_pairs(pairs: dict[str, Any]) -> None:
    usable = {
        (operator, contender.name)
        for operator, suite in TINY.items()
        if operator != "model"
        for contender in suite.contenders(suite.cases[0])
        if not contender.missing and not contender.ours
    } | {("ms_deform_attn", GRID_SAMPLE + FUSED_FORM)}
    assert {(row["operator"], row["peer"]) for row in pairs["rows"]} == usable
    for row in pairs["rows"]:
        assert not {"failed", "peer_failed"} & row.keys(), row
        assert {"case", "pass", "rounds", "ours_spread", "peer_spread", "busy"} <= row.keys()
        assert row["threads"] == 1
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
        assert row["peer"] in format_row(row)
    passes = {row["pass"] for row in pairs["rows"] if row["operator"] == "ms_deform_attn"}
    assert passes >= {"forward", "forward+backward"}
    machine = pairs["machine"]
    assert {"device", "cpu", "cores", "isa", "commit", "date", "openmp_runtimes", "seed"} <= machine.keys()
    assert machine["versions"]["torch"] == torch.__version__


def test_contenders_alone(host: None, tmp_path: Path) -> None:
    path, lines = tmp_path / "alone.json", []
    report = run_benchmarks(ALONE, path, lines.append, list(TINY.values()))
    assert json.loads(path.read_text()) == json.loads(json.dumps(report))
    rows: list[Row] = report["rows"]
    assert len(lines) == 1 + len(rows) + len(report["goals"]) + 1
    assert not any({"failed", "peer_failed", "left_out"} & row.keys() for row in rows), rows
    timed = {(row["operator"], row["contender"]) for row in rows if "kernel_us" in row}
    missing = {(row["operator"], row["contender"]) for row in rows if "missing" in row}
    in_place = {"box_match_cost", "linear_assignment", "matcher"}
    assert timed >= {(operator, CUDA) for operator in in_place}
    assert timed >= {(operator, "cpu") for operator in TINY}
    assert timed >= {
        ("linear_assignment", CUDA + AUCTION),
        ("linear_assignment", SCIPY_ON_HOST),
        ("ms_deform_attn", GRID_SAMPLE),
        ("ms_deform_attn", GRID_SAMPLE + FUSED_FORM),
        ("matcher", OFFICIAL),
        ("criterion", OFFICIAL),
        ("class_loss", PLAIN_PYTORCH),
        ("mask_criterion", OFFICIAL_MASKS),
        ("mask_match_cost", BATCHED),
        ("point_sample", "grid_sample"),
    }
    assert missing >= {(operator, TRITON) for operator in TINY}
    assert missing >= {("linear_assignment", TORCH_LINEAR_ASSIGNMENT), ("linear_assignment", BIRDER)}
    assert missing >= {("model", CUDA), ("ms_deform_attn", CUDA + DETERMINISTIC)}
    for row in rows:
        if "kernel_us" in row:
            assert row["over_floor"] == pytest.approx(row["kernel_us"] / row["floor_us"])
            assert row["timed_by"] == "wall"
            cold = row["operator"] == "ms_deform_attn"
            assert (row["input_sets"] > 1, row["call_us"] is not None, "gather_us" in row) == (
                cold,
                cold,
                cold,
            )
            if "flops" not in row:
                floor_us = 1e6 * row["device_bytes"] / report["rates"]["copy_bytes_per_s"]
                assert row["floor_us"] == pytest.approx(floor_us)
        assert row["contender"] in format_row(row)
    assert {row["pass"] for row in rows if row["contender"].endswith(DETERMINISTIC)} == {BACKWARD}
    assert {goal["verdict"] for goal in report["goals"]} == {"not measured"}
    assert {"clocks_before", "clocks_after", "device", "commit"} <= report["machine"].keys()

    text = markdown(report)
    assert all(f"### {operator}\n" in text for operator in TINY)
    assert "| tiny bf16, bf16, fused, backward | " in text
    assert f"- {TRITON} is not usable here: " in text
    table = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 10]
    assert len(table) == len(TINY) + sum("missing" not in row for row in rows)


def test_time_that_is_up_leaves_rows_out() -> None:
    for plan in (replace(PAIRED, deadline_s=0.0), replace(ALONE, deadline_s=0.0)):
        rows = list(Runner(plan, [TINY["linear_assignment"], TINY["ms_deform_attn"]]).run())
        reasons = {row.get("left_out", "missing") for row in rows}
        assert "time was up" in reasons <= {"time was up", "missing"}
        assert all(format_row(row).endswith("left out: time was up") for row in rows if "left_out" in row)


def test_what_fails_alone_is_told_and_a_lost_device_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inputs: Any, pass_: str) -> Any:
        raise RuntimeError("no kernel image")

    whole = TINY["matcher"]
    found = whole.contenders(whole.cases[0])
    ours, peer = (replace(c, prepare=broken) for c in (found[0], found[2]))
    bad = replace(whole, gpu_contenders=lambda case, device: [peer, ours, found[0]])
    rows = list(Runner(ALONE, [bad]).run())
    assert "RuntimeError: no kernel image" in rows[0]["peer_failed"]
    assert "FAILED: detr_fast raised RuntimeError" in format_row(rows[1])
    assert "kernel_us" in rows[2]
    monkeypatch.setattr(runner.Clock, "works", lambda self: False)
    rows = list(Runner(ALONE, [bad]).run())
    assert [row["left_out"] for row in rows[1:]] == 2 * [f"the device failed in {OFFICIAL}"]


def test_quick_plans_are_bounded() -> None:
    for device in ("cpu", "cuda"):
        plan = Plan.of(device, quick=True, operators=["matcher"])
        assert plan.quick
        assert plan.deadline_s <= 45
        assert plan.paired == (device == "cpu")
        assert {s.operator for s, _ in plan.chosen(all_suites())} == {"matcher"}
    assert not math.isfinite(Plan.of("cpu", quick=False).deadline_s)
    assert "model" not in {s.operator for s, _ in Plan().chosen(all_suites())}
    with pytest.raises(ValueError, match=r"operators: expected some of .*; got 'softmax'"):
        Plan.of("cpu", True, operators=["softmax"])


def test_median_over_the_assignment_cases() -> None:
    def row(case: str, ratio: float | None) -> Row:
        return {"operator": "linear_assignment", "case": case, "peer": SCIPY, "threads": 2, "ratio": ratio}

    cases = ["100x7 random", "100x7 early", "300x30 random"]
    (median,) = median_rows([row("1x1 random", 1.0), *map(row, cases, (3.0, 20.0, 5.0))])
    assert (median["ratio"], median["goal"], median["case"]) == (5.0, 10.0, "median of 3 cases")
    assert median_rows([row(cases[0], 3.0), row(cases[1], None)]) == []


def test_old_and_new_reports_are_merged_and_drawn(pairs: dict[str, Any], tmp_path: Path) -> None:
    old = json.loads((RESULTS / "2026-11-21-cpu-2core.json").read_text())
    piece = {**pairs, "machine": {**pairs["machine"], "cpu": old["machine"]["cpu"]}}
    merged = merge([piece, old])
    keys = [
        tuple(row[key] for key in ("operator", "case", "pass", "threads", "peer")) for row in merged["rows"]
    ]
    assert len(keys) == len(set(keys)) == len(old["rows"]) + len(pairs["rows"])
    files = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "merged.json", tmp_path / "speed.png"]
    files[0].write_text(json.dumps(piece))
    files[1].write_text(json.dumps(old))
    assert main(["merge", str(files[0]), str(files[1]), "--out", str(files[2])]) == 0
    assert json.loads(files[2].read_text()) == merged
    assert main(["plot", str(files[2]), "--out", str(files[3])]) == 0
    assert files[3].stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no rows"):
        plot.draw(merged, 3, tmp_path / "none.png")


def test_variants_of_other_suites() -> None:
    """Each runs once at tiny sizes: beside busy loops, and by lesser instruction sets."""
    plan = replace(PAIRED, operators=["busy", "isa box_match_cost"])
    variants = {suite.operator: suite.at_tiny_sizes() for suite, _ in plan.chosen(all_suites())}
    assert variants.keys() == {
        *("busy linear_assignment", "busy matcher", "busy ms_deform_attn", "isa box_match_cost")
    }
    assert not [name for suite, _ in Plan().chosen(all_suites()) if " " in (name := suite.operator)]
    module = extension()
    best = module.isa()
    rows = list(Runner(plan, list(variants.values())).run())
    assert {row["operator"] for row in rows} == variants.keys()
    assert module.isa() == best
    assert [row["peer"] for row in rows if row["operator"] == "isa box_match_cost"] == module.isas()[:-1]
    for row in rows:
        assert row["ours_p95_ms"] >= row["ours_ms"] > 0, row
        assert row.get("goal") == (1.0 if row["operator"].startswith("isa") else None)


def test_chart_reads_pytest_benchmark_results() -> None:
    def entry(contender: str, median: float) -> dict[str, Any]:
        info = {"operator": "matcher", "case": "c", "pass": "forward", "threads": 1, "contender": contender}
        return {"group": "g", "extra_info": info, "stats": {"median": median}}

    times = {"detr_fast": 2.0, "detr_fast, fused form": 1.0, "a": 6.0, "a, fused form": 5.0}
    rows = plot.read_rows({"benchmarks": [entry(*time) for time in times.items()]})
    assert {row["peer"]: row["ratio"] for row in rows} == {"a": 3.0, "a, fused form": 5.0}


def test_pytest_has_an_entry_for_each_contender() -> None:
    entries = bench_suites.entries([1, 2])
    assert len(set(map(str, entries))) == len(entries) > 300
    assert {entry.suite.operator for entry in entries} == {s.operator for s in all_suites() if s.by_default}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "2", "--device", "cuda"], "--threads: they are the CPU's; add --device cpu"),
        (["--threads", "0"], "--threads: expected at least 1; got 0"),
        (["--operator", "softmax"], "operators: expected some of"),
    ],
)
def test_wrong_options_are_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_machine_names_nobody() -> None:
    machine = describe_machine()
    assert not any(str(Path.home()) in str(value) for value in machine.values())


@pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))
def test_mask_criterion_needs_at_most_half_of_the_memory() -> None:
    """Many target masks at full resolution: the peer's float copies of them show."""
    case = Masks("small", (40,), queries=40, layers=1, classes=5)
    (row,) = memory.run(case, (FORWARD_BACKWARD,))
    assert 0 < row["ours_mib"] <= row["peer_mib"] / 2
    assert row["ratio"] == pytest.approx(row["peer_mib"] / row["ours_mib"])
