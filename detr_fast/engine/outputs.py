"""Where results of image files are written: a name for each, and never over what was read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def distinct_stems(files: Sequence[Path]) -> list[str]:
    """The files' stems, and `<stem>_2` ... where several have the same one, or `A` and `a`."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name, count = file.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{file.stem}_{count}"
        names.append(name)
        taken.add(name.casefold())
    return names


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """ValueError for an output that is one of the inputs, by whatever name, symbolic or hard link."""
    read = {identity: path for path in inputs for identity in _identities(path)}
    for path in outputs:
        for identity in _identities(path):
            if identity in read:
                raise ValueError(
                    f"output: {path} would be written over the input {read[identity]}; choose another place"
                )


def _identities(path: Path) -> list[object]:
    """The file that a path leads to, or would lead to."""
    try:
        found = path.stat()
    except OSError:
        return [path.resolve()]
    return [path.resolve(), (found.st_dev, found.st_ino)]
