"""Timing two callables against each other on one machine, in one process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A sample of a fast call repeats it for about this long, so that the clock's resolution does not matter.
SAMPLE_S = 1e-3
# A callable faster than this is called once untimed after each switch, to find its inputs in the cache again.
REWARM_BELOW_S = 0.05
# An OpenMP pool spins for some milliseconds after its last region; a second runtime's pool must not meet it.
SETTLE_S = 0.01


@dataclass(frozen=True)
class Timing:
    """Medians of interleaved samples, in milliseconds a call.

    Spreads are the interquartile range over the median. busy: the share of samples that began while another
    process ran. Either says that the machine was not quiet.
    """

    ours_ms: float
    peer_ms: float
    ours_spread: float
    peer_spread: float
    rounds: int
    busy: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the peer's time over ours."""
        return self.peer_ms / self.ours_ms


def interleaved(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    budget_s: float = 4.0,
    min_rounds: int = 3,
    max_rounds: int = 31,
    patience_s: float = 0.0,
    first_s: tuple[float, float] | None = None,
) -> Timing:
    """Samples `ours`, `peer`, `ours`, `peer`, ... and takes the median of each.

    The number of rounds fills `budget_s` seconds, but stays within `min_rounds` and `max_rounds`.
    patience_s: how long each sample waits for other processes to stop.
    first_s: what a first call of each took, where the caller has made one; it saves a slow warm-up.
    """
    first_s = first_s or (_time(ours, 1), _time(peer, 1))
    estimates = [_estimate(*both) for both in zip((ours, peer), first_s, strict=True)]
    calls = [max(1, math.ceil(SAMPLE_S / estimate)) for estimate in estimates]
    round_s = sum(_round_s(*both) for both in zip(estimates, calls, strict=True))
    rounds = max(min_rounds, min(max_rounds, int(budget_s / round_s)))
    samples: tuple[list[float], list[float]] = ([], [])
    busy = 0
    for _ in range(rounds):
        for which, function in enumerate((ours, peer)):
            busy += not _settle(patience_s)
            if estimates[which] < REWARM_BELOW_S:
                function()
            samples[which].append(_time(function, calls[which]))
    medians = [statistics.median(sample) for sample in samples]
    return Timing(
        ours_ms=1e3 * medians[0],
        peer_ms=1e3 * medians[1],
        ours_spread=_spread(samples[0]),
        peer_spread=_spread(samples[1]),
        rounds=rounds,
        busy=busy / (2 * rounds),
    )


def _settle(patience_s: float) -> bool:
    """Pauses until no other process runs, but at most `patience_s` longer than usual; whether none runs."""
    patience_ends = time.perf_counter() + patience_s
    while True:
        time.sleep(SETTLE_S)
        quiet = _running_tasks() <= 1
        if quiet or time.perf_counter() >= patience_ends:
            return quiet


def _running_tasks() -> int:
    """Tasks that run or wait for a core, ours included; 0 where the system does not tell."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except OSError:
        return 0


def _estimate(function: Callable[[], Any], first_s: float) -> float:
    """Seconds a call; the first call of a fast one says little, so it is timed again."""
    return first_s if first_s > REWARM_BELOW_S else max(1e-7, _time(function, 2))


def _round_s(estimate: float, calls: int) -> float:
    return SETTLE_S + estimate * (calls + (estimate < REWARM_BELOW_S))


def _time(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _spread(samples: list[float]) -> float:
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle
