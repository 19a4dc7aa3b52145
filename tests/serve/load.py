"""Many clients at once beside one: python -m tests.serve.load CHECKPOINT IMAGE... [--clients 64]."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from detr_fast import Detector
from detr_fast.serve import ServeOptions
from tests.serve.running import running


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Args:
        answers: of each question, in its order.
        seconds: that each took, its retries included.
        wall: from the first question to the last answer.
        refused: answers of 503, after which a client came again.
    """

    answers: list[dict[str, Any]]
    seconds: list[float]
    wall: float
    refused: int

    def __str__(self) -> str:
        middle, slow = (1000 * np.percentile(self.seconds, p) for p in (50, 95))
        rate = len(self.answers) / self.wall
        return f"{rate:8.2f} images/s, median {middle:7.0f} ms, p95 {slow:7.0f} ms, {self.refused} refused"


async def ask_all(url: str, contents: Sequence[bytes], clients: int, most_wait: float | None = None) -> Load:
    """Every image once, by clients that each ask one question after the other.

    Args:
        url: of the server.
        contents: image files.
        clients: how many.
        most_wait: seconds after which a refused client comes again, at the latest; by default as it is told.
    """
    answers: list[dict[str, Any]] = [{}] * len(contents)
    seconds = [0.0] * len(contents)
    waiting, refused = iter(range(len(contents))), 0

    async def client() -> None:
        # one pool for all would cost more than the server does
        async with httpx.AsyncClient(base_url=url, timeout=600, verify=False) as session:
            await ask(session)

    async def ask(session: httpx.AsyncClient) -> None:
        nonlocal refused
        for i in waiting:
            started = time.perf_counter()
            while True:
                answer = await session.post("/predict", files={"image": contents[i]})
                if answer.status_code != 503:
                    break
                refused += 1
                told = float(answer.headers["retry-after"])
                await asyncio.sleep(told if most_wait is None else min(told, most_wait))
            answer.raise_for_status()
            answers[i], seconds[i] = answer.json(), time.perf_counter() - started

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(answers, seconds, time.perf_counter() - started, refused)


def main() -> None:
    """Prints throughput and latency for one client and for many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--max-batch", type=int, default=ServeOptions.max_batch)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    detector = Detector.load(options.checkpoint, threads=options.threads, dtype=options.dtype)
    files = [path.read_bytes() for path in options.images]
    contents = [files[i % len(files)] for i in range(options.questions)]
    with running(detector, ServeOptions(max_batch=options.max_batch)) as url:
        print("one by one  ", asyncio.run(ask_all(url, contents, 1)))
        print(f"{options.clients:3d} clients ", asyncio.run(ask_all(url, contents, options.clients)))


if __name__ == "__main__":
    main()
