"""YAML from anybody, read in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
MAX_EVENTS = 100_000
MAX_DEPTH = 20


def read_yaml(path: Path) -> Any:
    """What a YAML file says, all values as they are written: `no`, `012` and `1.10` are words.

    Lists and mappings may not occur twice (by an alias), as a few lines of such stand for more than any
    memory holds. Single values may.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML file, or larger or deeper than a description of data is.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes; got {path.stat().st_size}")
    content = path.read_bytes()
    try:
        _check(content)
        return yaml.load(content, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())[:200]}") from error


def _check(content: bytes) -> None:
    """Walks through the file without keeping anything of it."""
    import yaml

    depth = 0
    scalars: set[str | None] = set()
    for count, event in enumerate(yaml.parse(content, yaml.BaseLoader)):
        if count > MAX_EVENTS:
            raise ValueError(f"expected at most {MAX_EVENTS} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            scalars.discard(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent):
            scalars.add(event.anchor)
        elif isinstance(event, yaml.AliasEvent) and event.anchor not in scalars:
            raise ValueError(f"expected each list and mapping once; *{event.anchor} repeats one")
        if depth > MAX_DEPTH:
            raise ValueError(f"expected at most {MAX_DEPTH} levels")
