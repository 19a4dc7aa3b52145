"""A result that differs from the reference is never timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.contract import ContractFailed
from benchmarks.runner import Plan, Runner, Subject
from benchmarks.suite import FORWARD, FORWARD_BACKWARD, Contender, Suite
from benchmarks.suites import ms_deform_attn
from tests.benchmarking.conftest import FULL, TINY

ATTENTION = FULL["ms_deform_attn"].tiny[0]
PLAN = Plan(threads=(1,), budget_s=0, patience_s=0)
USABLE = [
    (operator, case, contender.name)
    for operator, suite in TINY.items()
    if operator != "model"
    for case in suite.cases
    for contender in suite.contenders(case)
    if not contender.missing
]


def spoilt(contender: Contender, spoil: Callable[[Any], Any]) -> Contender:
    """`contender` with its result spoilt."""

    def prepare(inputs: Any, pass_: str) -> Callable[[], Any]:
        call = contender.prepare(inputs, pass_)
        return lambda: spoil(call())

    return replace(contender, prepare=prepare)


def with_spoilt(operator: str, ours: bool, spoil: Callable[[Any], Any]) -> Suite:
    """The suite of the first case and peer with one side of it spoilt."""
    whole = TINY[operator]
    found = whole.contenders(whole.cases[0])
    mine = found[0]
    peer = next(contender for contender in found if not contender.ours and contender.beside == mine.name)
    pair = [spoilt(mine, spoil), peer] if ours else [mine, spoilt(peer, spoil)]
    right = partial(whole.expected_of, whole.cases[0])
    return replace(whole, cases=whole.cases[:1], contenders=lambda case: pair, expected=right)


def test_every_suite_is_tried() -> None:
    assert all(suite.tiny for suite in TINY.values())


@pytest.mark.parametrize(
    ("operator", "case", "name"), USABLE, ids=[f"{o}-{c.name}-{n}" for o, c, n in USABLE]
)
def test_right_results_pass(operator: str, case: Any, name: str, rng: torch.Generator) -> None:
    subject = Subject(TINY[operator], case, seed=rng.initial_seed())
    contender = next(c for c in subject.suite.contenders(case) if c.name == name)
    for pass_ in case.passes:
        assert subject.check(contender, pass_) > 0


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_the_path_that_is_compiled_is_right(
    form: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(ATTENTION, form=form)
    monkeypatch.setattr(ms_deform_attn, "_compiled_path", lambda path: path)
    (contender,) = [c for c in FULL["ms_deform_attn"].contenders(case) if c.compiles_s]
    assert contender.name.startswith("indexing, torch.compile")
    subject = Subject(FULL["ms_deform_attn"], case, seed=rng.initial_seed())
    assert subject.check(contender, FORWARD_BACKWARD) > 0


def test_what_is_compiled_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = {c.name: c.missing for c in FULL["ms_deform_attn"].contenders(ATTENTION) if c.compiles_s}
    assert found == {"indexing, torch.compile": "torch.compile finds no no-such-compiler"}


def swapped(queries: torch.Tensor) -> torch.Tensor:
    """The first problem's first two targets trade their queries."""
    other = queries.clone()
    other[..., :2] = queries[..., :2].flip(-1)
    return other


SPOILS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "output": ("ms_deform_attn", FORWARD, lambda r: (r[0] + 1e-2,)),
    "output not finite": ("ms_deform_attn", FORWARD, lambda r: (r[0] / 0,)),
    "output shape": ("ms_deform_attn", FORWARD, lambda r: (r[0][:, 1:],)),
    "grad_value": ("ms_deform_attn", FORWARD_BACKWARD, lambda r: (r[0], r[1] * 1.001, *r[2:])),
    "grad_locations": ("ms_deform_attn", FORWARD_BACKWARD, lambda r: (*r[:2], r[2].flip(1), r[3])),
    "no gradients": ("ms_deform_attn", FORWARD_BACKWARD, lambda r: r[:1]),
    "dearer": ("linear_assignment", FORWARD, swapped),
    "query twice": ("linear_assignment", FORWARD, torch.zeros_like),
    "no such query": ("linear_assignment", FORWARD, lambda r: r + 9),
    "unmatched": ("linear_assignment", FORWARD, lambda r: torch.full_like(r, -1)),
    "cost": ("box_match_cost", FORWARD, lambda r: r.flip(-1)),
    "mask cost": ("mask_match_cost", FORWARD, lambda r: r * 1.001),
    "dearer match": ("matcher", FORWARD, lambda r: replace(r, query=swapped(r.query))),
    "loss": ("criterion", FORWARD_BACKWARD, lambda r: {**r, "loss_ce": r["loss_ce"] * 1.001}),
    "missing loss": (
        "criterion",
        FORWARD_BACKWARD,
        lambda r: {k: v for k, v in r.items() if k != "loss_giou_0"},
    ),
    "mask gradient": (
        "mask_criterion",
        FORWARD_BACKWARD,
        lambda r: {**r, "grad_masks": r["grad_masks"] * 1.1},
    ),
    "gradient of a loss": ("class_loss", FORWARD_BACKWARD, lambda r: {**r, "gradient": -r["gradient"]}),
    "a crash": ("linear_assignment", FORWARD, lambda r: 1 / 0),
}


@pytest.mark.parametrize("name", SPOILS)
def test_wrong_results_are_refused(name: str, rng: torch.Generator) -> None:
    operator, pass_, spoil = SPOILS[name]
    wrong = with_spoilt(operator, True, spoil)
    subject = Subject(wrong, wrong.cases[0], seed=rng.initial_seed())
    with pytest.raises(ContractFailed, match="detr_fast"):
        subject.check(wrong.contenders(None)[0], pass_)


@pytest.mark.parametrize(("ours", "reason"), [(True, "failed"), (False, "peer_failed")])
def test_a_wrong_side_leaves_a_failed_row_without_a_time(ours: bool, reason: str) -> None:
    wrong = with_spoilt("ms_deform_attn", ours, lambda r: (r[0] * 2, *r[1:]))
    row, _ = Runner(PLAN, [wrong]).run()
    assert row["ratio"] is None
    assert "relative error" in row[reason]
    assert "ours_ms" not in row


def test_sampled_check_sees_the_checked_queries() -> None:
    subject = Subject(TINY["ms_deform_attn"], ATTENTION, queries=7)
    ours = subject.suite.contenders(ATTENTION)[0]
    assert subject.check(ours, FORWARD_BACKWARD) > 0
    leaky = spoilt(ours, lambda r: (r[0], r[1], r[2] + 1e-6, r[3]))
    with pytest.raises(ContractFailed, match="grad_locations"):
        subject.check(leaky, FORWARD_BACKWARD)
    assert Subject(subject.suite, ATTENTION, queries=10_000).to_check.checked is None


def test_results_that_must_repeat_are_called_twice() -> None:
    calls: list[int] = []

    def wobble(result: Any) -> Any:
        calls.append(0)
        return (result[0] * (1 + 1e-6 * len(calls)), *result[1:])

    subject = Subject(TINY["ms_deform_attn"], ATTENTION)
    ours = replace(subject.suite.contenders(ATTENTION)[0], repeatable=True)
    subject.check(ours, FORWARD_BACKWARD)
    with pytest.raises(ContractFailed, match="output: two runs differ"):
        subject.check(spoilt(ours, wobble), FORWARD_BACKWARD)
