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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    # the first call of a fast one says little
    slow = [first > REWARM_BELOW_S for first in first_s]
    estimates = [
        s if of else max(1e-7, _time(f, 2)) for f, s, of in zip((ours, peer), first_s, slow, strict=True)
    ]
    calls = [max(1, math.ceil(SAMPLE_S / estimate)) for estimate in estimates]
    rewarm = [estimate < REWARM_BELOW_S for estimate in estimates]
    round_s = sum(SETTLE_S + s * (n + again) for s, n, again in zip(estimates, calls, rewarm, strict=True))
    rounds = max(min_rounds, min(max_rounds, int(budget_s / round_s)))
    samples: tuple[list[float], list[float]] = ([], [])
    busy = 0
    for _ in range(rounds):
        for which, function in enumerate((ours, peer)):
            busy += not _settle(patience_s)
            if rewarm[which]:
                function()
            samples[which].append(1e3 * _time(function, calls[which]))
    ours_ms, peer_ms = map(statistics.median, samples)
    times = {"ours_ms": ours_ms, "peer_ms": peer_ms, "ratio": peer_ms / ours_ms}
    times |= {"ours_p95_ms": _p95(samples[0]), "peer_p95_ms": _p95(samples[1])}
    spreads = {"ours_spread": _spread(samples[0]), "peer_spread": _spread(samples[1])}
    return {**times, **spreads, "rounds": rounds, "busy": round(busy / (2 * rounds), 3)}


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


def _time(function: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _p95(samples: Sequence[float]) -> float:
    return sorted(samples)[math.ceil(0.95 * len(samples)) - 1]


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


def _spread(samples: Sequence[float]) -> float:
    """Interquartile range over median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return round((high - low) / middle, 3) if middle else 0.0


@dataclass(frozen=True)
class KernelTime:
    """Median over the samples. how: graph, events or wall. note: why no graph was captured."""

    samples: Sequence[float]
    how: str
    note: str = ""

    @property
    def us(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        return _spread(self.samples)


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

    def kernel(self, calls: Sequence[Call], budget_s: float) -> KernelTime:
        """Time of one of `calls`, which are made in turn."""
        calls[0]()
        samples: list[float] = []
        ends = time.perf_counter() + budget_s
        while len(samples) < 3 or (time.perf_counter() < ends and len(samples) < 40):
            samples.append(1e6 * _time(functools.partial(_all, calls), 1) / len(calls))
        return KernelTime(samples, WALL)

    def call(self, call: Call, kernel_us: float) -> float:
        """Microseconds until a call returns to Python, the device's work left running."""
        calls, samples = 50 if kernel_us < 500 else 5, []
        for _ in range(7):
            self.synchronize()
            samples.append(1e6 * _time(call, calls))
        self.synchronize()
        return statistics.median(samples)

    def step(self, call: Call, budget_s: float) -> KernelTime:
        """Wall time of a call until the device has done its work; it has been made before."""

        def step() -> None:
            call()
            self.synchronize()

        samples: list[float] = []
        ends = time.perf_counter() + budget_s
        while len(samples) < 2 or (time.perf_counter() < ends and len(samples) < 100):
            self.synchronize()
            samples.append(1e6 * _time(step, 1))
        return KernelTime(samples, WALL)

    def works(self) -> bool:
        """Whether the device still answers; after an illegal access it does not."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def copy_rates(self) -> tuple[float, float]:
        """Bytes a second, read and written, of copies in device memory and in the cache."""
        rates = []
        with self.context():
            for size in self.copy_bytes:
                source = torch.rand(size // 4, device=self.device)
                copy = functools.partial(torch.empty_like(source).copy_, source)
                rates.append(2 * size / (1e-6 * self.kernel([copy], 0.2).us))
        return rates[0], rates[1]

    def product_rates(self) -> dict[str, float]:
        """Operations a second of a matrix product in fp32, tf32 (fp32 where there is none) and bf16."""
        rates = {}
        before = torch.backends.cuda.matmul.allow_tf32
        with self.context():
            for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
                x = torch.randn(self.product_side, self.product_side, device=self.device, dtype=dtype)
                torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
                try:
                    kernel = self.kernel([functools.partial(torch.mm, x, x, out=torch.empty_like(x))], 0.1)
                finally:
                    torch.backends.cuda.matmul.allow_tf32 = before
                rates[name] = 2 * self.product_side**3 / (1e-6 * kernel.us)
        return rates


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

    def kernel(self, calls: Sequence[Call], budget_s: float) -> KernelTime:
        """Replayed as a graph where the calls can be captured."""
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
            run, how = functools.partial(_all, sequence), EVENTS
            note = f"not captured: {type(error).__name__}: {error}"
        run()
        first_us = self._between_events(run)
        count = int(min(40, max(3, 1e6 * budget_s / first_us)))
        return KernelTime([self._between_events(run) / len(sequence) for _ in range(count)], how, note)

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


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


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
    command = [shutil.which("nvidia-smi") or "", f"--query-gpu={','.join(SMI_FIELDS)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = (done.stdout.splitlines() or [""])[0].split(", ")
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else {}
