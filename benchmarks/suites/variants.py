"""Calls of other suites under other conditions: `busy`, beside busy loops; `isa`, by lesser instruction sets.

They run when they are named: `--operator busy`, `--operator "isa linear_assignment"`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.suite import FORWARD, Call, Contender, Suite
from benchmarks.suites import detection, linear_assignment, ms_deform_attn
from detr_fast import extension


def _with_isa(isa: str, ours: Contender, inputs: Any, pass_: str) -> Call:
    call, module = ours.prepare(inputs, pass_), extension.extension()
    best = module.isa()

    def by_isa() -> Any:
        module.set_isa(isa)
        try:
            return call()
        finally:
            module.set_isa(best)

    return by_isa


def _contenders(suite: Suite, case: Any) -> list[Contender]:
    """Ours by each instruction set of this machine below the best, beside the best."""
    ours, *_ = suite.contenders(case)
    lesser = extension.extension().isas()[:-1] if extension.why_not() is None else ()
    make = partial(replace, ours, ours=False)
    return [ours, *(make(name=isa, prepare=partial(_with_isa, isa, ours)) for isa in lesser)]


def _variant(kind: str, suite: Suite, cases: list[Any], **options: Any) -> Suite:
    options |= {"operator": f"{kind} {suite.operator}", "cases": cases, "by_default": False}
    return replace(suite, gpu_cases=(), gpu_goals=lambda rows: (), summary=lambda rows: [], **options)


def _busy(suite: Suite, *names: str) -> Suite:
    """Forward passes of the plain form; goals hold on a quiet machine only."""
    found: list[Any] = [case for case in suite.cases if case.name in names]
    cases = [replace(case, passes=(FORWARD,)) for case in found if getattr(case, "form", "plain") == "plain"]
    return _variant("busy", suite, cases, busy=True, goal=lambda *_: None)


def _isa(suite: Suite) -> Suite:
    """A lesser one is held to be no faster."""
    return _variant("isa", suite, [*suite.cases], contenders=partial(_contenders, suite), goal=lambda *_: 1.0)


(_ASSIGNMENT,), (_ATTENTION,) = linear_assignment.SUITES, ms_deform_attn.SUITES
_COSTS, _MATCHER, *_ = detection.SUITES
SUITES = [
    _busy(_ASSIGNMENT, "300x30 clustered", "300x30 clustered B=96"),
    _busy(_MATCHER, "B=16 Q=100 L=6"),
    _busy(_ATTENTION, "decoder"),
    _isa(_ASSIGNMENT),
    _isa(_COSTS),
    _isa(_ATTENTION),
]
