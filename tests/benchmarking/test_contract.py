"""A result that differs from the reference is never timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.cases import (
    FORWARD,
    FORWARD_BACKWARD,
    AssignmentCase,
    AttentionCase,
    DetectionCase,
    MaskCase,
    MaskCostCase,
)
from benchmarks.contract import ContractFailed
from benchmarks.peers import Contender, Peer, all_peers
from benchmarks.suite import Comparison, Plan, run

ATTENTION = AttentionCase("tiny", 1, None, ((6, 5), (3, 2)), heads=2, channels=8, points=2)
ASSIGNMENT = AssignmentCase(9, 3, "clustered", images=2)
MATCHER = DetectionCase("tiny", 2, 9, (3, 2), layers=2, classes=5)
COST = replace(MATCHER, operator="box_match_cost")
CRITERION = replace(MATCHER, operator="criterion", passes=(FORWARD_BACKWARD,))
MASK_COSTS = [MaskCostCase("tiny", (3, 2), 70, kind, 6, 2, 5) for kind in ("bce", "focal")]
MASK_CRITERION = MaskCase("tiny", (3, 2), queries=6, layers=2, classes=5, size=64)

PAIRS = [
    (case, peer)
    for case in (ATTENTION, ASSIGNMENT, MATCHER, COST, *MASK_COSTS, CRITERION, MASK_CRITERION)
    for peer in all_peers()
    if peer.operator == case.operator and not peer.missing
]


def wrong(contender: Contender, spoil: Callable[[Any], Any]) -> Contender:
    """`contender` with its result spoilt."""

    def prepare(inputs: Any, pass_: str, threads: int) -> Callable[[], Any]:
        call = contender.prepare(inputs, pass_, threads)
        return lambda: spoil(call())

    return replace(contender, prepare=prepare)


@pytest.mark.parametrize(("case", "peer"), PAIRS, ids=[f"{c.operator}-{p.name}" for c, p in PAIRS])
def test_right_results_pass(case: Any, peer: Peer, rng: torch.Generator) -> None:
    for pass_ in case.passes:
        comparison = Comparison(case, pass_, case.inputs(rng))
        assert comparison.check(peer.ours, peer.contract, 1) > 0
        assert comparison.check(peer.theirs, peer.contract, 1) > 0


def peer_of(operator: str) -> Peer:
    return next(peer for peer in all_peers() if peer.operator == operator)


def swapped(queries: torch.Tensor) -> torch.Tensor:
    """The first problem's first two targets trade their queries."""
    spoilt = queries.clone()
    spoilt[..., :2] = queries[..., :2].flip(-1)
    return spoilt


SPOILS = {
    "output": (ATTENTION, FORWARD, lambda r: (r[0] + 1e-2,)),
    "output not finite": (ATTENTION, FORWARD, lambda r: (r[0] / 0,)),
    "output shape": (ATTENTION, FORWARD, lambda r: (r[0][:, 1:],)),
    "grad_value": (ATTENTION, FORWARD_BACKWARD, lambda r: (r[0], r[1] * 1.001, *r[2:])),
    "grad_locations": (ATTENTION, FORWARD_BACKWARD, lambda r: (*r[:2], r[2].flip(1), r[3])),
    "no gradients": (ATTENTION, FORWARD_BACKWARD, lambda r: r[:1]),
    "dearer": (ASSIGNMENT, FORWARD, swapped),
    "query twice": (ASSIGNMENT, FORWARD, torch.zeros_like),
    "no such query": (ASSIGNMENT, FORWARD, lambda r: r + 9),
    "unmatched": (ASSIGNMENT, FORWARD, lambda r: torch.full_like(r, -1)),
    "cost": (COST, FORWARD, lambda r: r.flip(-1)),
    "mask cost": (MASK_COSTS[0], FORWARD, lambda r: r * 1.001),
    "dearer match": (MATCHER, FORWARD, lambda r: replace(r, query=swapped(r.query))),
    "loss": (CRITERION, FORWARD_BACKWARD, lambda r: {**r, "loss_ce": r["loss_ce"] * 1.001}),
    "mask gradient": (
        MASK_CRITERION,
        FORWARD_BACKWARD,
        lambda r: {**r, "grad_masks": r["grad_masks"] * 1.1},
    ),
    "missing loss": (
        CRITERION,
        FORWARD_BACKWARD,
        lambda r: {k: v for k, v in r.items() if k != "loss_giou_0"},
    ),
}


@pytest.mark.parametrize("name", SPOILS)
def test_wrong_results_are_refused(name: str, rng: torch.Generator) -> None:
    case, pass_, spoil = SPOILS[name]
    peer = peer_of(case.operator)
    comparison = Comparison(case, pass_, case.inputs(rng))
    with pytest.raises(ContractFailed, match="detr_fast"):
        comparison.check(wrong(peer.ours, spoil), peer.contract, 1)


@pytest.mark.parametrize(("side", "reason"), [("ours", "failed"), ("theirs", "peer_failed")])
def test_a_wrong_side_leaves_a_failed_row_without_a_time(side: str, reason: str) -> None:
    peer = peer_of("ms_deform_attn")
    spoilt = replace(peer, **{side: wrong(getattr(peer, side), lambda r: (r[0] * 2, *r[1:]))})
    (row, _) = run(Plan(threads=(1,), budget_s=0, patience_s=0), [ATTENTION], [spoilt])
    assert row["ratio"] is None
    assert "relative error" in row[reason]
    assert "ours_ms" not in row


def test_a_crash_leaves_a_failed_row() -> None:
    def crash(result: Any) -> Any:
        raise RuntimeError("segments out of order")

    peer = peer_of("linear_assignment")
    (row,) = run(
        Plan(threads=(1,), budget_s=0, patience_s=0),
        [ASSIGNMENT],
        [replace(peer, theirs=wrong(peer.theirs, crash))],
    )
    assert row["ratio"] is None
    assert "RuntimeError: segments out of order" in row["peer_failed"]


def test_sampled_check_sees_the_checked_queries(rng: torch.Generator) -> None:
    peer = peer_of("ms_deform_attn")
    inputs = ATTENTION.inputs(rng)
    comparison = Comparison(ATTENTION, FORWARD_BACKWARD, inputs, checked_queries=7)
    assert comparison.check(peer.ours, peer.contract, 1) > 0
    leaky = wrong(peer.ours, lambda r: (r[0], r[1], r[2] + 1e-6, r[3]))
    with pytest.raises(ContractFailed, match="grad_locations"):
        comparison.check(leaky, peer.contract, 1)
    assert inputs.sampled(10_000, rng) is inputs
