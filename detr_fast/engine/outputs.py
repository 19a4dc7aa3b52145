"""Where results of image files are written: a name for each, and never over what was read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path


def distinct_names(stems: Iterable[str]) -> list[str]:
    """The stems, and `<stem>_2` ... where several are the same, or `A` and `a`."""
    names: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        names.append(name)
        taken.add(name.casefold())
    return names


def check_not_inputs(outputs: Iterable[str | Path], inputs: Collection[str | Path]) -> None:
    """ValueError for an output that is one of the inputs, by whatever name, symbolic or hard link."""
    awaited = {os.path.realpath(path): path for path in inputs if _identity(path) is None}
    present: dict[object, str | Path] = {}
    for output in outputs:
        if (identity := _identity(output)) is not None:
            present[identity] = output
        elif awaited and (path := awaited.get(os.path.realpath(output))) is not None:
            raise _collision(output, path)
    if not present:
        return
    for path in inputs:
        if (hit := present.get(_identity(path))) is not None:
            raise _collision(hit, path)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """The file that a path leads to; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million `Path`s take a minute
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _collision(output: str | Path, path: str | Path) -> ValueError:
    return ValueError(f"output: {output} would be written over the input {path}; choose another place")
