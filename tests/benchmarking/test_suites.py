"""What the suites hold: cases, floors, inputs, goals."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.clocks import Rates
from benchmarks.contract import ContractFailed
from benchmarks.peers import exported, gpu_assignment, transformers_models
from benchmarks.peers.gpu_assignment import BIRDER, TORCH_LINEAR_ASSIGNMENT
from benchmarks.report import cells, judge
from benchmarks.runner import Plan, Subject
from benchmarks.suite import BACKWARD, CUDA, FORWARD, FORWARD_BACKWARD, TRITON, Row, Work, all_suites
from benchmarks.suites.detection import COCO_COUNTS, OFFICIAL, STEP, padded_match
from benchmarks.suites.linear_assignment import SCIPY, SCIPY_ON_HOST
from benchmarks.suites.ms_deform_attn import (
    ALL_BF16,
    BF16,
    CLASSIC,
    DETERMINISTIC,
    FUSED,
    FUSED_FORM,
    PLAIN,
    Inputs,
    touched,
)
from detr_fast.ops import linear_assignment
from tests.benchmarking.conftest import FULL, TINY

ATTENTION = FULL["ms_deform_attn"].tiny[0]


def test_cases_have_names_of_their_own() -> None:
    for full in FULL.values():
        for cases in (full.cases, full.gpu_cases):
            kinds = ("name", "dtype", "form", "compiled")
            keys = {tuple(getattr(case, kind, "") for kind in kinds) for case in cases}
            assert len(keys) == len(cases) > 0


def test_goals_name_cases_and_peers_that_exist() -> None:
    found = [
        (full.operator, case.name, pass_, peer.name)
        for full in all_suites()
        for case in full.cases
        for peer in full.contenders(case)
        for pass_ in case.passes
        if full.goal(case.name, pass_, peer.name, 2) is not None and not peer.ours and full.by_default
    ]
    # 4 attention cases x 2 passes x 2 peers, assignment: 18 cases x 2 peers and 40 x 3, 3 matcher cases
    assert len(found) == len(set(found)) == 16 + 36 + 120 + 3
    assert FULL["linear_assignment"].goal("100x7 random", FORWARD, SCIPY, 1) is None


def test_gpu_cases_are_those_that_goals_are_set_for() -> None:
    names = {operator: {case.name for case in full.gpu_cases} for operator, full in FULL.items()}
    assert len(names["linear_assignment"]) == 2 * 18
    assert "900x300 early" in names["linear_assignment"]
    assert STEP in names["matcher"] & names["criterion"]
    assert {"encoder B=2", "decoder B=2"} <= names["ms_deform_attn"]
    assert (sum(COCO_COUNTS), max(COCO_COUNTS)) == (7 * len(COCO_COUNTS), 60)
    order = [case.quick for _, case in Plan.of("cuda", quick=False).chosen(all_suites())]
    assert order == sorted(order, reverse=True)
    quick = Plan.of("cuda", quick=True).chosen(all_suites())
    assert {"ms_deform_attn", "matcher", "criterion", "linear_assignment", "mask_criterion", "model"} <= {
        s.operator for s, _ in quick
    }


def one_head(locations: list[tuple[float, float]], form: str = PLAIN) -> Inputs:
    """One image and head, D = 8, a level of 4 rows and 2 columns, one point for each of the queries."""
    Q = len(locations)
    places = torch.tensor(locations).view(1, Q, 1, 1, 1, 2)
    references = torch.zeros(1, Q, 1, 2)
    if form == FUSED:
        places = places * torch.tensor([2.0, 4.0])
    leaves = {"value": torch.zeros(1, 8, 1, 8), "places": places, "weights": torch.zeros(1, Q, 1, 1, 1)}
    return Inputs(form, ((4, 2),), leaves, references, torch.zeros(1, Q, 8))


def test_floors_of_attention_by_hand() -> None:
    # the middle of four pixels; the same again; beyond a corner, where one pixel is left; far outside
    points = [(0.5, 0.25), (0.5, 0.25), (0.0, 0.0), (9.0, 9.0)]
    inputs, fused = one_head(points), one_head(points, FUSED)
    assert touched(inputs) == touched(fused) == (4 + 4 + 1, 4)
    row, locations, weights, references, out, value = 32, 4 * 8, 4 * 4, 4 * 8, 4 * 32, 8 * 32
    work = FULL["ms_deform_attn"].work
    forward = work(inputs, FORWARD)
    assert forward == Work(4 * row + locations + weights + out, gather=9 * row)
    moved = 4 * row + 2 * (locations + weights) + out + value
    assert work(inputs, BACKWARD) == Work(moved, gather=2 * 9 * row)
    assert work(fused, FORWARD).bytes == forward.bytes + references
    narrow = {**inputs.leaves, "value": inputs.leaves["value"].bfloat16()}
    assert work(replace(inputs, leaves=narrow), BACKWARD).gather == 9 * (16 + 32)


def test_floors_by_hand(rng: torch.Generator) -> None:
    def work(operator: str, pass_: str, which: int = 0) -> Work:
        return FULL[operator].work(FULL[operator].tiny[which].inputs(rng), pass_)

    assert work("linear_assignment", FORWARD).bytes == 3 * 4 * 9 * 4 + 3 * 4 * 8
    predictions, targets = 2 * 2 * 12 * (5 + 4) * 4, 8 * (8 + 16)
    assert work("matcher", FORWARD).bytes == predictions + targets + 2 * 8 * 8
    assert work("criterion", FORWARD_BACKWARD).bytes == 2 * predictions + targets
    assert work("box_match_cost", FORWARD).bytes == predictions + targets + 4 * 2 * 12 * 8
    predictions, targets = 4 * 2 * 2 * 6 * (6 + 16 * 16), 5 * (8 + 16 + 64 * 64)
    assert work("mask_criterion", FORWARD).bytes == predictions + targets
    assert work("mask_criterion", FORWARD_BACKWARD).bytes == 2 * predictions + targets
    pairs, read = 2 * 5 * 6, 4 * 2 * 2 * 6 * (6 + 70) + 5 * 8 + 4 * 2 * 5 * 70
    assert work("mask_match_cost", FORWARD) == Work(read + 4 * pairs, 2 * 2 * pairs * 70)
    # fewer values are read than the maps have
    points = 4 * 9
    assert work("point_sample", FORWARD).bytes == min(4 * 64 * 4, 4 * 4 * points) + 8 * points + 4 * points
    assert work("point_sample", FORWARD_BACKWARD).bytes > work("point_sample", FORWARD).bytes
    assert work("box_loss", FORWARD_BACKWARD).bytes == 2 * 4 * 2 * 2 * 12 * 4 + 8 * 16 + 2 * 8 * 8
    rates = Rates(1e6, 1e6, {"fp32": 1e6, "bf16": 1e3})
    assert rates.floor_us(Work(2, 5, "bf16")) == pytest.approx(5000.0)
    assert rates.floor_us(Work(20, 5)) == pytest.approx(20.0)
    assert rates.floor_us(Work(20)) == pytest.approx(20.0)


def test_narrow_inputs_keep_away_from_pixels(rng: torch.Generator) -> None:
    inputs = replace(ATTENTION, precision=BF16, form=FUSED).inputs(rng)
    assert {x.dtype for x in inputs.leaves.values()} == {torch.bfloat16}
    assert inputs.references.dtype == torch.float32
    extent = torch.tensor([(w, h) for h, w in inputs.shapes])[:, None]
    anchors, offsets = inputs.references.double()[:, :, None, :, None], inputs.leaves["offsets"].double()
    pixels = anchors * extent + offsets - 0.5
    assert (pixels - pixels.round()).abs().min() > 1e-3
    assert replace(ATTENTION, precision=BF16).inputs(rng).leaves["locations"].dtype == torch.float32
    assert replace(ATTENTION, precision=ALL_BF16).inputs(rng).leaves["locations"].dtype == torch.bfloat16


def test_rotated_inputs_hold_more_than_the_cache() -> None:
    subject = Subject(TINY["ms_deform_attn"], ATTENTION)
    sets = subject.copies(cache_bytes=20_000)
    assert sets[0] is subject.inputs
    assert len({of_set.leaves["value"].data_ptr() for of_set in sets}) == len(sets) > 1
    assert all(torch.equal(of_set.leaves["value"], subject.inputs.leaves["value"]) for of_set in sets)
    assert sum(4 * tensor.numel() for of_set in sets for tensor in of_set.tensors()) >= 3 * 20_000
    assert subject.copies(cache_bytes=10) == [subject.inputs]
    assert len(Subject(TINY["matcher"], FULL["matcher"].tiny[0]).copies(20_000)) == 1


def test_padded_costs_give_the_optimum(rng: torch.Generator) -> None:
    def solve(costs: Tensor) -> Tensor:
        problems, targets, _ = costs.shape
        return linear_assignment(costs.flatten(0, 1), [targets] * problems).view(problems, targets)

    whole, inputs = TINY["matcher"], FULL["matcher"].tiny[0].inputs(rng)
    found = inputs.by_image(list(padded_match(solve, inputs, FORWARD)()))
    whole.verify(whole.expected_of(whole.tiny[0], inputs, FORWARD), found)


def test_models_are_counted_and_compared(rng: torch.Generator) -> None:
    case, full = FULL["model"].tiny[0], FULL["model"]
    one, two = (full.work(replace(case, images=images).inputs(rng), FORWARD) for images in (1, 2))
    assert 0 < one.flops < two.flops <= 2 * one.flops
    assert one.unit == "tf32"
    inputs = case.inputs(rng)
    assert full.work(replace(inputs, dtype="bf16"), FORWARD).bytes == one.bytes // 2
    expected = full.expected_of(case, inputs, FORWARD)
    full.verify(expected, expected.values)
    with pytest.raises(ContractFailed, match=r"classes: relative error .* over 5e-03"):
        full.verify(expected, {name: 1.1 * x for name, x in expected.values.items()})


def test_exported_models_take_the_same_pixels(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself takes minutes; here the model stands for it."""
    case, full = FULL["model"].tiny[0], FULL["model"]
    inputs = case.inputs(rng)
    made = []

    def export(detector: Any, path: Any, *, processing: bool) -> None:
        made.append((path.suffix, processing))
        path.touch()

    def run(given: Any) -> Any:
        assert given["sizes"].tolist() == [list(given["images"].shape[2:])]
        found = inputs.model(torch.from_numpy(given["images"]))
        return {"logits": found.logits[-1].numpy(), "masks": found.masks[-1].numpy()}

    monkeypatch.setattr("detr_fast.export.export", export)
    monkeypatch.setattr("detr_fast.engine.exported.open_file", lambda path, runtime: (run, {}))
    expected = full.expected_of(case, inputs, FORWARD)
    for runtime in exported.SUFFIXES:
        for _ in range(2):
            full.verify(expected, inputs.call(exported.forward_of(inputs.model, runtime))())
    assert made == [(".onnx", False), (".xml", False)]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino" in (exported.why_not("openvino") or "")


def test_a_peer_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, reason in ((None, "import of transformers halted"), ("4.57.1", "transformers 4.57.1: ")):
        module = installed and SimpleNamespace(__version__=installed)
        monkeypatch.setitem(sys.modules, "transformers", module)
        assert (transformers_models.why_not() or "").startswith(reason)


def test_birder_is_compiled_from_its_package_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    package = tmp_path / "birder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('what the kernel does not need')")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    birder = gpu_assignment.birder_operator
    try:
        birder.cache_clear()
        assert birder() == (None, "No module named 'birder'")
        monkeypatch.syspath_prepend(str(tmp_path))
        birder.cache_clear()
        operator, reason = birder()  # its sources are not there
        assert (operator, bool(reason)) == (None, True)
        (tmp_path / "extensions" / "birder_assignment" / "lock").touch()
        birder.cache_clear()
        assert "its compilation was stopped" in (birder()[1] or "")
    finally:
        birder.cache_clear()


def row(
    operator: str, case: str, contender: str, us: float, pass_: str = FORWARD, **more: Any
) -> dict[str, Any]:
    key = {"operator": operator, "case": case, "dtype": "fp32", "form": "", "pass": pass_}
    return {**key, "contender": contender, "kernel_us": us, "wall_us": 1.0, **more}


def test_goals_of_attention_are_judged_on_the_rows() -> None:
    def at(contender: str, us: float, pass_: str = FORWARD, **more: Any) -> Row:
        return {**row("ms_deform_attn", "encoder B=2", contender, us, pass_, form=PLAIN), **more}

    rows = [
        at(CUDA, 200.0),
        at(CLASSIC, 700.0),
        at(CUDA, 400.0, BACKWARD),
        at(CLASSIC, 1000.0, BACKWARD),
        at(CUDA + DETERMINISTIC, 500.0, BACKWARD),
        at(CUDA, 210.0, form=FUSED),
        at(CLASSIC + FUSED_FORM, 250.0, form=FUSED),
        at(CUDA, 9.0, case="decoder B=2", call_us=16.0),
        at(TRITON, 20.0, case="decoder B=2"),
    ]
    found = {goal["goal"]: (goal["measured"], goal["verdict"]) for goal in judge(rows)}
    assert found["encoder B=2 forward, fp32"] == (200.0, "met")
    assert found["encoder B=2 forward, fp32, classic kernel / ours"] == (3.5, "met")
    assert found["encoder B=2 backward, fp32, classic kernel / ours"] == (2.5, "missed")
    assert found["encoder B=2 backward, fp32, deterministic / default"] == (1.25, "met")
    assert found["encoder B=2 forward, fp32, saved by the fused form"] == (40.0, "missed")
    assert found["decoder B=2 forward, fp32"] == (9.0, "met")
    assert found["decoder B=2 forward, fp32, call from Python with autograd"] == (16.0, "missed")
    worst = "triton / cuda, forward, worst case (decoder B=2, fp32, plain, of 1)"
    assert found[worst] == (pytest.approx(20 / 9), "missed")
    assert found["triton / cuda, backward, worst case"] == (None, "not measured")
    assert found["encoder B=2 forward, bf16"] == (None, "not measured")


def test_goals_of_matching_are_judged_on_the_rows() -> None:
    a, b, op = "900x300 early", "100x7 random", "linear_assignment"
    rows = [
        row(op, a, CUDA, 1000.0),
        row(op, a, TRITON, 9000.0),
        row(op, a, BIRDER, 8000.0),
        row(op, a, TORCH_LINEAR_ASSIGNMENT, 9000.0),
        row(op, a, SCIPY_ON_HOST, 300000.0),
        row(op, b, CUDA, 10.0),
        row(op, b, BIRDER, 60.0),
        row(op, b, TORCH_LINEAR_ASSIGNMENT, 40.0),
        row(op, b, SCIPY_ON_HOST, 510.0),
        row("matcher", STEP, CUDA, 600.0),
        row("criterion", STEP, CUDA, 900.0, wall_us=2500.0),
        row("criterion", STEP, OFFICIAL, 50000.0, wall_us=50000.0),
    ]
    found = {goal["goal"]: (goal["measured"], goal["verdict"]) for goal in judge(rows)}
    worst = f"worst case ({b}, of 2)"
    assert found[f"assignment B=16, best peer on the device / ours, {worst}"] == (4.0, "missed")
    assert found[f"assignment B=16, scipy with copies / ours, {worst}"] == (51.0, "met")
    assert found["assignment B=96, scipy with copies / ours, worst case"] == (None, "not measured")
    assert found[f"assignment {a}"] == (1000.0, "met")
    assert found[f"matcher {STEP}"] == (600.0, "missed")
    assert found[f"criterion {STEP}, forward and backward, wall"] == (2500.0, "met")
    assert found[f"criterion {STEP}, {OFFICIAL} / ours, wall"] == (20.0, "met")
    assert cells(judge(rows)[0])[3] in ("met", "missed", "not measured")
