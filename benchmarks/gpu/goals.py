"""What the GPU operators are held to on an H100, judged on the rows of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu.cases import FUSED, PLAIN
from benchmarks.gpu.contenders import CLASSIC, CUDA, DETERMINISTIC, EAGER, TRITON
from benchmarks.gpu.matching_goals import MATCHING_OPERATORS, matching_goals

Row = dict[str, Any]
Lookup = Callable[..., "float | None"]
MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


def judge(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """[{"goal", "unit", "at_most" or "at_least", "measured" (None where a row is absent), "verdict"}]."""
    attention = [row for row in rows if row.get("operator") not in MATCHING_OPERATORS]
    matching = [row for row in rows if row.get("operator") in MATCHING_OPERATORS]
    return [_verdict(*goal) for goal in (*_goals(attention), *matching_goals(matching))]


def kernel_us(
    rows: Sequence[Row],
    case: str,
    dtype: str,
    form: str,
    pass_: str,
    contender: str,
    what: str = "kernel_us",
) -> float | None:
    """The time of one row, or None where it was not measured."""
    for row in rows:
        if (row["case"], row["dtype"], row["form"], row["pass"], row["contender"]) == (
            case,
            dtype,
            form,
            pass_,
            contender,
        ):
            time: float | None = row.get(what)
            return time
    return None


def _goals(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """(goal, unit, at_most or at_least, limit, measured)"""
    encoder, decoder = "encoder B=2", "decoder B=2"
    for dtype, limit in (("bf16", 130.0), ("fp32", 260.0)):

        def us(*key: str, dtype: str = dtype) -> float | None:
            case, form, pass_, contender, *what = key
            return kernel_us(rows, case, dtype, form, pass_, contender, *what)

        forward, backward = us(encoder, PLAIN, "forward", CUDA), us(encoder, PLAIN, "backward", CUDA)
        yield f"{encoder} forward, {dtype}", "us", "at_most", limit, forward
        for pass_, ours in (("forward", forward), ("backward", backward)):
            times = _ratio(us(encoder, PLAIN, pass_, CLASSIC), ours)
            yield f"{encoder} {pass_}, {dtype}, classic kernel / ours", "x", "at_least", 3.0, times
        slower = _ratio(us(encoder, PLAIN, "backward", CUDA + DETERMINISTIC), backward)
        yield f"{encoder} backward, {dtype}, deterministic / default", "x", "at_most", 1.5, slower
        eager, fused = us(encoder, FUSED, "forward", CLASSIC + EAGER), us(encoder, FUSED, "forward", CUDA)
        saved = None if eager is None or fused is None else eager - fused
        yield f"{encoder} forward, {dtype}, saved by the fused form", "us", "at_least", 45.0, saved
        yield f"{decoder} forward, {dtype}", "us", "at_most", 10.0, us(decoder, PLAIN, "forward", CUDA)
        call_us = us(decoder, PLAIN, "forward", CUDA, "call_us")
        yield f"{decoder} forward, {dtype}, call from Python with autograd", "us", "at_most", 15.0, call_us
    for pass_ in ("forward", "backward"):
        worst, where = _worst_triton(rows, pass_)
        yield f"Triton / CUDA, {pass_}, worst case{where}", "x", "at_most", 1.5, worst


def _worst_triton(rows: Sequence[Row], pass_: str) -> tuple[float | None, str]:
    found = []
    for row in rows:
        if row["contender"] == TRITON and row["pass"] == pass_ and "kernel_us" in row:
            cuda = kernel_us(rows, row["case"], row["dtype"], row["form"], pass_, CUDA)
            if cuda is not None:
                found.append((row["kernel_us"] / cuda, f" ({row['case']}, {row['dtype']}, {row['form']})"))
    return max(found, default=(None, ""))


def _ratio(of: float | None, to: float | None) -> float | None:
    return None if of is None or to is None else of / to


def _verdict(goal: str, unit: str, bound: str, limit: float, measured: float | None) -> dict[str, Any]:
    if measured is None:
        verdict = NOT_MEASURED
    else:
        verdict = MET if (measured <= limit if bound == "at_most" else measured >= limit) else MISSED
    return {"goal": goal, "unit": unit, bound: limit, "measured": measured, "verdict": verdict}
