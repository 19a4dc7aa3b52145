"""The clocks, without a GPU."""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks.clocks import CudaClock, interleaved
from benchmarks.runner import Plan, Runner
from detr_fast.machine import torch_threads
from tests.benchmarking.conftest import TINY


def test_interleaved_samples_alternate_and_count() -> None:
    calls: list[str] = []

    def slow(name: str) -> None:
        calls.append(name)
        time.sleep(0.06)

    timing = interleaved(lambda: slow("a"), lambda: slow("b"), (0.06, 0.06), budget_s=0, min_rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert timing["rounds"] == 2
    assert timing["ours_ms"] >= 60
    assert timing["peer_ms"] >= 60
    assert timing["ratio"] == timing["peer_ms"] / timing["ours_ms"]


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    list(Runner(Plan(threads=(before + 1,), budget_s=0, patience_s=0), [TINY["linear_assignment"]]).run())
    assert torch.get_num_threads() == before


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


class FakeGraph:
    replays = 0

    def capture_begin(self) -> None: ...

    def capture_end(self) -> None: ...

    def replay(self) -> None:
        FakeGraph.replays += 1
        time.sleep(1e-4)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as the clock uses it, without a device."""
    properties = SimpleNamespace(L2_cache_size=2**20)
    for name, fake in {
        "get_device_properties": lambda device: properties,
        "Stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "synchronize": lambda: None,
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_a_graph_is_replayed_or_the_row_says_why_not(fake_cuda: None) -> None:
    clock = CudaClock(torch.device("cuda"))
    assert clock.cache_bytes == 2**20
    made: list[int] = []
    with clock.context():
        before = FakeGraph.replays
        captured = clock.kernel([lambda: made.append(0), lambda: made.append(1)], 0.01)
        assert captured["timed_by"] == "graph"
        assert FakeGraph.replays - before == captured["samples"] + 2  # two to warm up
        assert made == [0, 1, 0] + 10 * [0, 1]  # twice, once for an estimate, then 20 captured

        def uncapturable() -> None:
            if not gc.isenabled():
                raise RuntimeError("operation not permitted when stream is capturing")

        loose = clock.kernel([uncapturable], 0.01)
        assert loose["timed_by"] == "events"
        assert loose["note"].startswith("not captured: RuntimeError: operation not permitted")
        assert gc.isenabled()
        assert clock.call(uncapturable, 10.0) > 0
        assert clock.step(uncapturable, 0.01)["timed_by"] == "wall"
        assert clock.works()
