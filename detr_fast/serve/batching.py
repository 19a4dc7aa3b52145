"""Dynamic batching: what several callers ask for at once runs together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    kind: Hashable
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Answer]):
    """Runs items in batches on one thread of its own, the oldest first.

    A batch is taken when the thread is free and the oldest item has waited `max_wait`, or enough are there.
    It holds items of one kind alone, those of other kinds wait. Where a batch fails, its items are run one by
    one, so that only those fail that are to blame.

    Args:
        run: from a batch to the answers in its order; runs on the thread.
        kind: of an item.
        max_batch: items of a batch, at most.
        max_wait: seconds that an item waits for others while the thread is free.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        kind: Callable[[Item], Hashable],
        max_batch: int,
        max_wait: float,
    ) -> None:
        self._run, self._kind = run, kind
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """The answer to one item; what `run` raises for it."""
        if self._closing:
            raise RuntimeError("batcher: it is closed")
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, self._kind(item), answer))
        self._arrived.set()
        return await answer

    async def close(self) -> None:
        """Answers what is waiting, then stops."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._wait_for_others(self._waiting[0])
            batch = [one for one in self._take() if not one.answer.done()]
            if batch:
                await self._answer(batch)

    async def _wait_for_others(self, oldest: _Waiting[Item, Answer]) -> None:
        while not self._closing and sum(one.kind == oldest.kind for one in self._waiting) < self._max_batch:
            left = oldest.since + self._max_wait - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Waiting[Item, Answer]]:
        """The oldest item and the next ones of its kind."""
        kind = self._waiting[0].kind
        batch = [one for one in self._waiting if one.kind == kind][: self._max_batch]
        self._waiting = deque(one for one in self._waiting if one not in batch)
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Item, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._run, [one.item for one in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():  # its caller has gone
                one.answer.set_result(answer)
