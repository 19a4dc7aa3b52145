"""The plain data in pickles: containers, options, paths; and how what was interpreted becomes values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from detr_fast.checkpoints.pickle_machine import SCALARS, Names, StandIn, check_key, set_items

MAX_DEPTH = 100
MAX_VALUES = 2_000_000


class Contents(StandIn):
    """Stands for something that takes memory: it is made when everything is read, and once."""

    def value(self) -> Any:
        """What it stands for."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """The memory that `value` takes anew."""
        return 0


@dataclass(frozen=True)
class Encoded(Contents):
    """Bytes, as the text that they are encoded from."""

    text: str

    def value(self) -> bytes:
        return self.text.encode("latin1")

    @property
    def nbytes(self) -> int:
        return len(self.text)


class Options(StandIn):
    """Stands for argparse.Namespace."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError("options without names")
        self.state = state


def _encode(text: Any, encoding: Any) -> bytes | Encoded:
    """Stands for _codecs.encode, by which protocols before 3 write bytes."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError("expected bytes as latin1")
    return Encoded(text) if len(text) > 256 else text.encode("latin1")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Stands for OrderedDict, Counter and defaultdict: their entries are all that counts."""
    entries = arguments[-1] if arguments else None
    if isinstance(entries, list):  # of Python 2: pairs
        return set_items({}, [part for pair in entries for part in pair])
    return dict(entries) if isinstance(entries, dict) else {}


def _set(make: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda items=(): make(map(check_key, items))


def _path(make: Callable[..., PurePath]) -> Callable[..., Any]:
    def join(*parts: Any) -> PurePath:
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("expected a path of strings")
        return make(*parts)

    return join


def _uncallable(*_: Any) -> Any:
    raise ValueError("a call of a type")


PLAIN_NAMES: Names = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("argparse", "Namespace"): Options,
    ("_codecs", "encode"): _encode,
    **{
        (module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in {
            "bytes": lambda: b"",  # protocols before 3 write empty ones by it
            "set": _set(set),
            "frozenset": _set(frozenset),
            **dict.fromkeys(("list", "dict", "int", "float", "str", "bool"), _uncallable),
        }.items()
    },
    **{
        (module, name): _path(PureWindowsPath if "Windows" in name else PurePosixPath)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}


def values(root: Any, most_bytes: int) -> Any:
    """What `interpret` returned with values for the stand-ins; parts that occur many times are made once.

    Args:
        root: of `interpret`.
        most_bytes: that the values of stand-ins may take.

    Raises:
        ValueError: it is nested deeper than data is, written out it would have too many values or bytes, or
            it holds a stand-in that stands for no value.
    """
    done: dict[int, tuple[Any, int]] = {}
    spent = 0

    def convert(x: Any, depth: int) -> tuple[Any, int]:
        nonlocal spent
        if isinstance(x, (*SCALARS, PurePath, torch.dtype)):
            return x, 1
        if id(x) in done:
            return done[id(x)]
        if depth == MAX_DEPTH:
            raise ValueError(f"data nested deeper than {MAX_DEPTH}")
        count = 1
        value: Any
        if isinstance(x, Contents):
            spent += x.nbytes
            if spent > most_bytes:
                raise ValueError("arrays that share their contents to become larger than the file")
            value = x.value()
        elif isinstance(x, dict | Options):
            entries = {}
            for key, entry in (x.state if isinstance(x, Options) else x).items():
                entries[key], size = convert(entry, depth + 1)
                count += size
            value = argparse.Namespace(**entries) if isinstance(x, Options) else entries
        elif type(x) in (list, tuple):
            parts = [convert(part, depth + 1) for part in x]
            count += sum(size for _, size in parts)
            value = type(x)(part for part, _ in parts)
        elif isinstance(x, set | frozenset | bytearray):
            value = x
        else:
            raise ValueError(f"expected arrays and plain data; got a {type(x).__name__}")
        if count > MAX_VALUES:
            raise ValueError(f"lists that occur in one another and stand for more than {MAX_VALUES} values")
        done[id(x)] = value, count
        return value, count

    return convert(root, 0)[0]
