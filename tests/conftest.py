"""Fixtures of all tests: a fresh seed for each run, printed, and settable by DETR_FAST_SEED."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import pytest
import torch

# Without a GPU, Triton kernels are interpreted; it must be known before Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

else:  # without it matrix products are refused under deterministic algorithms
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

SEED = int(
    os.environ.setdefault("DETR_FAST_SEED", str(random.SystemRandom().randrange(2**31)))
)  # of all workers


def pytest_report_header() -> str:
    return f"detr_fast: random inputs from DETR_FAST_SEED={SEED}"


def generator(name: str) -> torch.Generator:
    """Random numbers of their own for each test, fixed by the run's seed and the test's name."""
    return torch.Generator().manual_seed((SEED + zlib.crc32(name.encode())) % 2**31)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    return generator(request.node.nodeid)


@pytest.fixture(autouse=True, scope="session")
def never_filled() -> Iterator[Callable[..., torch.Tensor]]:
    """Deterministic algorithms fill results with NaN or the largest integer, as they do all that torch makes:
    so tests poison them. Gives what does not fill."""
    from detr_fast.ops import memory

    def filled(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    never_filled = memory._never_filled
    with patch.object(memory, "_never_filled", filled):
        yield never_filled


@pytest.fixture(autouse=True)
def _keep_global_state() -> Iterator[None]:
    """A test that fails half-way leaves no thread count or determinism setting behind."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
