"""Signals that ask a run to end: it finishes its step and writes what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal ended the run, whose last checkpoint is written; `exit_code` is what shells expect then."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class StopRequest:
    """Remembers the first SIGINT or SIGTERM while it listens.

    Args:
        impatient: whether a second SIGINT ends the process at once. Launchers of several processes pass on
            signals that these get themselves too, so a second one tells nothing there.
    """

    def __init__(self, impatient: bool) -> None:
        self.number: int | None = None
        self._impatient = impatient
        self._at_once = False

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.number).name if self.number else "no signal"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals for the time of a block; only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While there is nothing to finish, a signal raises Interrupted."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = False

    def raise_if_asked(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number, f"stopped by {self.name}")

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None
        self.number = self.number or number
        if self._at_once:
            self.raise_if_asked()
        if again and self._impatient and number == signal.SIGINT:
            raise KeyboardInterrupt
