"""All timing: pairs of calls in turn on a CPU; kernel time, call time, rates and clocks of one device.

Events and graph replay on a CUDA device, the wall elsewhere.
"""

from __future__ import annotations

import functools
import gc
import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]

# A sample of a fast call repeats it for about this long, so that the clock's resolution does not matter.
SAMPLE_S = 1e-3
# A callable faster than this is called once untimed after each switch, to find its inputs in the cache again.
REWARM_BELOW_S = 0.05
# An OpenMP pool spins for some milliseconds after its last region; a second runtime's pool must not meet it.
SETTLE_S = 0.01
SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw")
GRAPH, EVENTS, WALL = "graph", "events", "wall"
# Calls between two events: enough that the events' resolution does not matter.
CALLS = 20
SHORT_US = 300.0
IDLE_BYTES = 8 * 2**30  # cached but unused memory from which the cache is emptied before a capture


@dataclass(frozen=True)
class Pair:
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
    ours: Call,
    peer: Call,
    *,
    budget_s: float = 4.0,
    min_rounds: int = 3,
    max_rounds: int = 31,
    patience_s: float = 0.0,
    first_s: tuple[float, float] | None = None,
) -> Pair:
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
    return Pair(
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


def _estimate(function: Call, first_s: float) -> float:
    """Seconds a call; the first call of a fast one says little, so it is timed again."""
    return first_s if first_s > REWARM_BELOW_S else max(1e-7, _time(function, 2))


def _round_s(estimate: float, calls: int) -> float:
    return SETTLE_S + estimate * (calls + (estimate < REWARM_BELOW_S))


def _time(function: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class KernelTime:
    """Median over the samples. spread: interquartile range over median.

    how: graph, events or wall. note: why no graph was captured.
    """

    us: float
    spread: float
    samples: int
    how: str
    note: str = ""


class WallClock:
    """For devices that finish a call before it returns: a trial of the suite without a GPU."""

    cache_bytes = 2**20

    @contextmanager
    def context(self) -> Iterator[None]:
        yield

    def kernel(self, calls: Sequence[Call], budget_s: float) -> KernelTime:
        """Time of one of `calls`, which are made in turn."""
        calls[0]()
        samples: list[float] = []
        ends = time.perf_counter() + budget_s
        while len(samples) < 3 or (time.perf_counter() < ends and len(samples) < 40):
            start = time.perf_counter()
            for call in calls:
                call()
            samples.append(1e6 * (time.perf_counter() - start) / len(calls))
        return _summary(samples, WALL)

    def call(self, call: Call, kernel_us: float) -> float:
        """Microseconds until a call returns to Python."""
        return _host_us(call, 3, lambda: None)

    def step(self, call: Call, budget_s: float) -> KernelTime:
        """Wall time of a call, which has been made before."""
        return _step(call, budget_s, lambda: None)

    def works(self) -> bool:
        return True

    def copy_rates(self) -> tuple[float, float]:
        """Bytes a second, read and written, of large and of cached copies."""
        return _copy_rate(self, torch.device("cpu"), 2**25), _copy_rate(self, torch.device("cpu"), 2**18)

    def product_rates(self) -> dict[str, float]:
        """Operations a second of a matrix product in each precision."""
        return _product_rates(self, torch.device("cpu"), 256)


class CudaClock:
    """What is timed must be prepared and called inside `context()`: on one stream, for captures."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        self.cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or 50 * 2**20
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def context(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def kernel(self, calls: Sequence[Call], budget_s: float) -> KernelTime:
        """Time of one of `calls`, which are made in turn, replayed as a graph where they can be captured."""
        for call in calls[:2]:
            call()
        warm_us = self._between_events(calls[0])
        repeats = max(1, CALLS // len(calls)) if warm_us < SHORT_US else 1
        sequence = [call for _ in range(repeats) for call in calls]
        note = ""
        try:
            run, how = self._capture(sequence).replay, GRAPH
        except Exception as error:
            torch.cuda.synchronize()
            run, how = (lambda: _all(sequence)), EVENTS
            note = f"not captured: {type(error).__name__}: {error}"
        run()
        first_us = self._between_events(run)
        count = int(min(40, max(3, 1e6 * budget_s / first_us)))
        samples = [self._between_events(run) / len(sequence) for _ in range(count)]
        return _summary(samples, how, note)

    def call(self, call: Call, kernel_us: float) -> float:
        """Microseconds until a call returns to Python, the device's work left running."""
        calls = 50 if kernel_us < 500 else 5
        return _host_us(call, calls, torch.cuda.synchronize)

    def step(self, call: Call, budget_s: float) -> KernelTime:
        """Wall time of a call until the device has done its work; it has been made before."""
        return _step(call, budget_s, torch.cuda.synchronize)

    def works(self) -> bool:
        """Whether the device still answers; after an illegal access it does not."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def copy_rates(self) -> tuple[float, float]:
        """Bytes a second, read and written, of copies in device memory and in the L2 cache."""
        with self.context():
            return (
                _copy_rate(self, self.device, 2**30),
                _copy_rate(self, self.device, self.cache_bytes // 8),
            )

    def product_rates(self) -> dict[str, float]:
        """Operations a second of a large matrix product in each precision."""
        with self.context():
            return _product_rates(self, self.device, 4096)

    def _between_events(self, run: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)

    def _capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if idle > IDLE_BYTES:
            torch.cuda.empty_cache()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # the collector could free memory of another graph, which a capture does not allow
        gc.disable()
        try:
            graph.capture_begin()
            try:
                _all(calls)
            finally:
                graph.capture_end()
        finally:
            gc.enable()
        return graph


def make_clock(device: torch.device) -> CudaClock | WallClock:
    return CudaClock(device) if device.type == "cuda" else WallClock()


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _copy_rate(clock: CudaClock | WallClock, device: torch.device, bytes_: int) -> float:
    source = torch.rand(bytes_ // 4, device=device)
    target = torch.empty_like(source)
    return 2 * bytes_ / (1e-6 * clock.kernel([lambda: target.copy_(source)], 0.2).us)


def _product_rates(clock: CudaClock | WallClock, device: torch.device, side: int) -> dict[str, float]:
    """fp32, tf32 (which is fp32 where the device has none) and bf16."""
    rates = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(side, side, device=device, dtype=dtype)
        out = torch.empty_like(x)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        try:
            kernel = clock.kernel([functools.partial(torch.mm, x, x, out=out)], 0.1)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        rates[name] = 2 * side**3 / (1e-6 * kernel.us)
    return rates


def _host_us(call: Call, calls: int, synchronize: Callable[[], None]) -> float:
    samples = []
    for _ in range(7):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append(1e6 * (time.perf_counter() - start) / calls)
    synchronize()
    return statistics.median(samples)


def _step(call: Call, budget_s: float, synchronize: Callable[[], None]) -> KernelTime:
    samples: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(samples) < 2 or (time.perf_counter() < ends and len(samples) < 100):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        samples.append(1e6 * (time.perf_counter() - start))
    return _summary(samples, WALL)


def _summary(samples: Sequence[float], how: str, note: str = "") -> KernelTime:
    return KernelTime(statistics.median(samples), _spread(samples), len(samples), how, note)


def _spread(samples: Sequence[float]) -> float:
    """Interquartile range over median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle if middle else 0.0


def describe_gpu(device: str) -> dict[str, Any]:
    """Name, architecture and sizes of the GPU, and torch's CUDA; {} for another device."""
    if torch.device(device).type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": properties.total_memory,
        "torch_cuda": torch.version.cuda,
    }


def read_clocks() -> dict[str, str]:
    """Driver, clocks (MHz) and power (W) as nvidia-smi reads them now; {} where it is missing."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    command = [smi, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = (done.stdout.splitlines() or [""])[0].split(", ")
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else {}
