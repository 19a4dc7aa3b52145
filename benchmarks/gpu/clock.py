"""Kernel time, call time and copy rates: events and graph replay on a CUDA device, the wall elsewhere."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
GRAPH, EVENTS, WALL = "graph", "events", "wall"
# Calls between two events: enough that the events' resolution does not matter.
CALLS = 20
SHORT_US = 300.0
IDLE_BYTES = 8 * 2**30  # cached but unused memory from which the cache is emptied before a capture


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
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return KernelTime(middle, (high - low) / middle if middle else 0.0, len(samples), how, note)
