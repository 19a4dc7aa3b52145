"""Runs a fuzz target: case after case in a child process that may not crash, hang or take much memory."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HANG_SECONDS = 60.0
MEMORY_BYTES = 2 << 30  # beyond what the parent has mapped already


@dataclass(frozen=True)
class Target:
    """What is tried.

    name: for messages.
    case: makes one input from the random numbers, writes it into the folder (empty at first, kept from case
        to case) and tries it. AssertionError, and whatever is not in `refusals`, is a finding.
    refusals: exceptions that refuse a bad input as they should.
    """

    name: str
    case: Callable[[random.Random, Path], None]
    refusals: tuple[type[Exception], ...]


class Finding(AssertionError):
    """A case that went wrong; the message says how to repeat it."""


def fuzz(target: Target, seconds: float, seed: int, first: int = 0, most: int | None = None) -> Counter[str]:
    """Tries cases first, first + 1, ... for a while, or `most` of them.

    Returns:
        how many were accepted ("accepted") and refused (by the exception's name).

    Raises:
        Finding: a case broke the target's promise, crashed, hung or took too much memory.
    """
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import torch each time
    current = context.Value("q", first)
    receiver, sender = context.Pipe(duplex=False)
    until = time.monotonic() + seconds
    child = context.Process(target=_child, args=(target, until, seed, first, most, current, sender))
    child.start()
    sender.close()
    try:
        done, since = first, time.monotonic()
        while not receiver.poll(0.2):
            if current.value != done:
                done, since = current.value, time.monotonic()
            elif time.monotonic() - since > HANG_SECONDS:
                raise _finding(target, seed, done, f"hangs: no answer within {HANG_SECONDS:.0f} s")
        try:
            outcome = receiver.recv()
        except EOFError:
            child.join()
            code = child.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise _finding(target, seed, current.value, f"kills the interpreter: {how}") from None
        if isinstance(outcome, str):
            raise _finding(target, seed, current.value, outcome)
        return outcome
    finally:
        child.kill()
        child.join()
        receiver.close()


def _finding(target: Target, seed: int, case: int, what: str) -> Finding:
    again = f"python -m {target.case.__module__} --seed {seed} --case {case}"
    return Finding(f"{target.name}: case {case} {what}\nrepeat: {again}")


def _child(
    target: Target, until: float, seed: int, first: int, most: int | None, current: Any, sender: Connection
) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, hard))
    outcome: Counter[str] = Counter()
    number = first
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until and (most is None or number < first + most):
            current.value = number
            try:
                target.case(random.Random(f"{seed}/{number}"), Path(folder))
                outcome["accepted"] += 1
            except target.refusals as error:
                outcome[type(error).__name__] += 1
            except BaseException:
                sender.send(traceback.format_exc())
                return
            number += 1
    sender.send(outcome)


def main(target: Target) -> None:
    """The command line of a target."""
    parser = argparse.ArgumentParser(description=f"Fuzzes {target.name}.")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--case", type=int, help="only this one")
    given = parser.parse_args()
    first, most = (0, None) if given.case is None else (given.case, 1)
    print(f"seed {given.seed}")
    try:
        outcome = fuzz(target, given.seconds, given.seed, first, most)
    except Finding as finding:
        sys.exit(str(finding))
    print(f"{target.name}: {sum(outcome.values())} cases, {dict(outcome)}")
