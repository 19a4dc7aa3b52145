"""All timing: pairs of calls in turn on a CPU; kernel time, call time, rates and clocks of one device.

Events and graph replay on a CUDA device, the wall elsewhere.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]

# A sample of a fast call repeats it for about this long, so that the clock's resolution does not matter.
SAMPLE_S = 1e-3
# A callable faster than this is called once untimed after each switch, to find its inputs in the cache again.
REWARM_BELOW_S = 0.05
# An OpenMP pool spins for some milliseconds after its last region; a second runtime's pool must not meet it.
SETTLE_S = 0.01
SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw")
# Calls between two events: enough that the events' resolution does not matter.
CALLS, SHORT_US = 20, 300.0
IDLE_BYTES = 8 * 2**30  # cached but unused memory from which the cache is emptied before a capture


def interleaved(
    ours: Call,
    peer: Call,
    first_s: Sequence[float],
    *,
    budget_s: float = 4.0,
    min_rounds: int = 3,
    max_rounds: int = 31,
    patience_s: float = 0.0,
) -> dict[str, Any]:
    """Samples `ours`, `peer`, `ours`, `peer`, ...: medians in ms, and ratio = peer's over ours.

    p95: that of the slowest but one in twenty. Spreads are the interquartile range over the median. busy: the
    share of samples that began while another process ran. Either says that the machine was not quiet.

    The rounds fill `budget_s` seconds, but stay within `min_rounds` and `max_rounds`.
    patience_s: how long each sample waits for other processes to stop.
    first_s: what a first call of each took.
    """
    sides = (ours, peer)
    # the first call of a fast one says little
    estimates = [
        s if s > REWARM_BELOW_S else max(1e-7, _time(f, 2)) for f, s in zip(sides, first_s, strict=True)
    ]
    calls = [max(1, math.ceil(SAMPLE_S / estimate)) for estimate in estimates]
    rewarm = [estimate < REWARM_BELOW_S for estimate in estimates]
    round_s = sum(SETTLE_S + s * (n + again) for s, n, again in zip(estimates, calls, rewarm, strict=True))
    rounds = max(min_rounds, min(max_rounds, int(budget_s / round_s)))
    samples: tuple[list[float], list[float]] = ([], [])
    busy = 0
    for _ in range(rounds):
        for which, function in enumerate(sides):
            busy += not _settle(patience_s)
            if rewarm[which]:
                function()
            samples[which].append(1e3 * _time(function, calls[which]))
    found: dict[str, Any] = {"rounds": rounds, "busy": round(busy / (2 * rounds), 3)}
    for side, of_side in zip(("ours", "peer"), samples, strict=True):
        p95 = sorted(of_side)[math.ceil(0.95 * rounds) - 1]
        found |= {f"{side}_ms": statistics.median(of_side), f"{side}_p95_ms": p95}
        found |= {f"{side}_spread": _spread(of_side)}
    return found | {"ratio": found["peer_ms"] / found["ours_ms"]}


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


def _time(function: Call, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _samples(sample: Callable[[], float], budget_s: float, least: int, most: int) -> list[float]:
    """As many as the time allows."""
    samples: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(samples) < least or (time.perf_counter() < ends and len(samples) < most):
        samples.append(sample())
    return samples


def _spread(samples: Sequence[float]) -> float:
    """Interquartile range over median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return round((high - low) / middle, 3) if middle else 0.0


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that do nothing but keep a core busy, as workers of a data loader do."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@dataclass(frozen=True)
class Work:
    """What a call must do at least.

    bytes: read and written once. flops: of products and convolutions, at the rate of `unit`. gather: bytes of
    rows that are read from, and in backward added to, the caches; None where that says nothing.
    """

    bytes: int
    flops: int = 0
    unit: str = "fp32"
    gather: int | None = None


@dataclass(frozen=True)
class Rates:
    """Bytes a second of a large and of a cached copy; operations a second of products, by precision."""

    copy: float
    cached_copy: float
    products: Mapping[str, float]

    def floor_us(self, work: Work) -> float:
        """The longer of moving the bytes and computing the products."""
        moved = 1e6 * work.bytes / self.copy
        return max(moved, 1e6 * work.flops / self.products[work.unit]) if work.flops else moved


class Clock:
    """Of a device that finishes a call before it returns."""

    device = torch.device("cpu")
    cache_bytes = 2**20
    copy_bytes, product_side = (2**25, 2**18), 256

    def context(self) -> Any:
        """What is timed must be prepared and called inside."""
        return nullcontext()

    def synchronize(self) -> None:
        """Waits until the device has done its work."""

    def works(self) -> bool:
        """Whether the device still answers; after an illegal access it does not."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def kernel(self, calls: Sequence[Call], budget_s: float) -> dict[str, Any]:
        """The device's time of one of `calls`, which are made in turn: part of a row.

        kernel_us: the median of so many `samples`, with their `spread`. timed_by: graph, events or wall.
        note: why no graph was captured.
        """
        calls[0]()
        run = functools.partial(_all, calls)
        return _timed([1e6 * s / len(calls) for s in _samples(lambda: _time(run), budget_s, 3, 40)], "wall")

    def call(self, call: Call, kernel_us: float) -> float:
        """Microseconds until a call returns to Python, the device's work left running."""
        calls, samples = 50 if kernel_us < 500 else 5, []
        for _ in range(7):
            self.synchronize()
            samples.append(1e6 * _time(call, calls))
        self.synchronize()
        return statistics.median(samples)

    def step(self, call: Call, budget_s: float) -> dict[str, Any]:
        """As `kernel`, of the wall time of a call until the device has done its work."""

        def step() -> None:
            call()
            self.synchronize()

        def sample() -> float:
            self.synchronize()
            return 1e6 * _time(step)

        return _timed(_samples(sample, budget_s, 2, 100), "wall")

    def rates(self) -> Rates:
        """Of copies in device memory and in the cache, and of matrix products."""
        copies, products, before = [], {}, torch.backends.cuda.matmul.allow_tf32
        with self.context():
            for size in self.copy_bytes:
                source = torch.rand(size // 4, device=self.device)
                copy = functools.partial(torch.empty_like(source).copy_, source)
                copies.append(2 * size / (1e-6 * self.kernel([copy], 0.2)["kernel_us"]))
            # tf32: fp32 where there is none
            for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
                x = torch.randn(self.product_side, self.product_side, device=self.device, dtype=dtype)
                product = functools.partial(torch.mm, x, x, out=torch.empty_like(x))
                torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
                kernel_us = self.kernel([product], 0.1)["kernel_us"]
                products[name] = 2 * self.product_side**3 / (1e-6 * kernel_us)
        torch.backends.cuda.matmul.allow_tf32 = before
        return Rates(copies[0], copies[1], products)


class CudaClock(Clock):
    """All on one stream, for captures."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        self.cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or 50 * 2**20
        self.copy_bytes, self.product_side = (2**30, self.cache_bytes // 8), 4096
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def context(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def kernel(self, calls: Sequence[Call], budget_s: float) -> dict[str, Any]:
        """Replayed as a graph where the calls can be captured."""
        for call in calls[:2]:
            call()
        repeats = max(1, CALLS // len(calls)) if self._between_events(calls[0]) < SHORT_US else 1
        sequence = [call for _ in range(repeats) for call in calls]
        how, note = "graph", ""
        try:
            run = self._capture(sequence).replay
        except Exception as error:
            torch.cuda.synchronize()
            run, how = functools.partial(_all, sequence), "events"
            note = f"not captured: {type(error).__name__}: {error}"
        run()
        count = int(min(40, max(3, 1e6 * budget_s / self._between_events(run))))
        return _timed([self._between_events(run) / len(sequence) for _ in range(count)], how, note)

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


def _timed(samples: Sequence[float], how: str, note: str = "") -> dict[str, Any]:
    row = {"kernel_us": statistics.median(samples), "spread": _spread(samples)}
    return {**row, "samples": len(samples), "timed_by": how, **({"note": note} if note else {})}


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Name, architecture and sizes of the GPU, and torch's CUDA; {} for another device."""
    if device.type != "cuda":
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
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(SMI_FIELDS, output.partition("\n")[0].split(", "), strict=False))
