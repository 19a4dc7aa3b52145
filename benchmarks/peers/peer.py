"""What a peer is, and what the peers of several operators share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract import Contract

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    prepare: (inputs, pass, threads) -> the call that is timed, everything else done.
    canonical: (result, inputs) -> the form that the contract compares; not timed.
    """

    name: str
    prepare: Callable[[Any, str, int], Call]
    canonical: Callable[[Any, Any], Any] = lambda result, inputs: result


@dataclass(frozen=True)
class Peer:
    """A contender of one operator, beside ours, which starts from the same inputs in the same layout.

    contract: what both results must meet. quick: whether the quick run includes this peer.
    missing: why the peer cannot run here, or None where it can.
    """

    operator: str
    theirs: Contender
    ours: Contender
    contract: Contract
    quick: bool = True
    missing: str | None = None

    @property
    def name(self) -> str:
        return self.theirs.name


def import_peer(module: str) -> tuple[Any, str | None]:
    """A module and None, or None and why it does not import."""
    try:
        return importlib.import_module(module), None
    except ImportError as error:
        return None, str(error).splitlines()[0].rpartition("/")[2][:100]


def from_pairs(pairs: Iterable[tuple[Any, Any]], sizes: Sequence[int]) -> list[Tensor]:
    """(target indices, query indices) of each problem as its targets' queries, int64 [T] with -1 for none."""
    queries = []
    for size, (target, query) in zip(sizes, pairs, strict=True):
        of_problem = torch.full((size,), -1)
        of_problem[torch.as_tensor(target, dtype=torch.int64)] = torch.as_tensor(query, dtype=torch.int64)
        queries.append(of_problem)
    return queries
