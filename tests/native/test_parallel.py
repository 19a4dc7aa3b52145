"""How CPU operators share out their work: helpers, many callers, fork, spawn, exit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from detr_fast.machine import torch_threads
from detr_fast.ops import linear_assignment, point_sample
from tests.paths import ROOT

SOURCES = (ROOT / "tests/native/parallel.cpp", ROOT / "csrc/common/cpu_parallel.cpp")
TARGETS = (30,) * 24  # enough for more than one thread


def _compile(program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no c++ on the PATH")
    command = [compiler, "-std=c++17", "-O1", "-pthread", *options, f"-I{ROOT / 'csrc'}", *map(str, SOURCES)]
    return subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pieces(tmp_path: Path) -> None:
    built = _compile(tmp_path / "parallel", "-Wall", "-Wextra", "-Werror")
    assert built.returncode == 0, built.stderr
    _run(str(tmp_path / "parallel"), "fork")


def test_pieces_race_nowhere(tmp_path: Path) -> None:
    built = _compile(tmp_path / "parallel", "-fsanitize=thread", "-g")
    if built.returncode:
        pytest.skip(f"no thread sanitizer: {built.stderr.strip()[-200:]}")
    # the sanitizer of older compilers knows fewer layouts of memory than kernels choose from
    fixed = ("setarch", "-R") if shutil.which("setarch") else ()
    _run(*fixed, str(tmp_path / "parallel"))


def _costs() -> torch.Tensor:
    return torch.rand(sum(TARGETS), 300, generator=torch.Generator().manual_seed(3))


def _solve(threads: int) -> list[int]:
    with torch_threads(threads):
        result: list[int] = linear_assignment(_costs(), TARGETS, backend="cpu").tolist()
    return result


def _helpers() -> int:
    """Threads of this process that wait for work of ours."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return names.count("detr_fast")


def test_threads_are_as_many_as_a_call_may_use() -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list threads")
    expected = _solve(1)
    assert _solve(3) == expected
    assert _helpers() >= 2
    before = _helpers()
    assert _solve(2) == _solve(3) == _solve(1) == expected
    assert _helpers() == before


def _in_child(code: str) -> None:
    """In a fresh interpreter, which must end by itself and in peace."""
    head = "import os\nfrom tests.native.test_parallel import _helpers, _solve\nexpected = _solve(3)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ends_with_the_interpreter() -> None:
    _in_child("")
    _in_child("os._exit(0)")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_of_fork_have_helpers_of_their_own() -> None:
    _in_child("""
for _ in range(5):
    child = os.fork()
    if child == 0:
        # torch's own threads do not survive a fork; what is called here uses none of them
        fresh = _helpers() == 0 if os.path.exists('/proc/self/task') else True
        os._exit(0 if fresh and _solve(3) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
""")


def _spawned(threads: int) -> list[int]:
    signal.alarm(100)
    return _solve(threads)


def test_spawned_workers() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_spawned, (2,)) == _solve(1)


def test_many_threads_call_at_once() -> None:
    expected, costs = _solve(1), _costs()
    with torch_threads(3), ThreadPoolExecutor(8) as callers:
        results = callers.map(lambda _: linear_assignment(costs, TARGETS, backend="cpu").tolist(), range(80))
        assert all(result == expected for result in results)


def test_flushed_denormals_do_not_depend_on_threads() -> None:
    """The caller's mode holds in every thread."""
    maps = torch.full((64, 1, 8, 8), 1e-39)
    points = torch.rand(64, 2000, 2)
    results = []
    for flush in (True, False):
        if not torch.set_flush_denormal(flush):
            pytest.skip("this CPU flushes no denormals")
        try:
            for threads in (1, 3):
                with torch_threads(threads):
                    results.append(point_sample(maps, points, backend="cpu"))
        finally:
            torch.set_flush_denormal(False)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
