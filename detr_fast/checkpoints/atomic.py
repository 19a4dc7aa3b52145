"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

TEMPORARY = re.compile(r"\..+\.(pt|pth|pkl|safetensors)\.\d+")


class _Watched:
    """A file for torch.save, whose own errors hide what the system said."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write `path` into: a crash leaves the previous file or the new one, never a part.

    Raises:
        OSError: it cannot be written, as where the disk is full; the previous file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    watched: _Watched | None = None
    try:
        with temporary.open("wb") as file:
            watched = _Watched(file)
            yield cast(IO[bytes], watched)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else watched.error if watched is not None else None
        if cause is None:
            raise
        raise _explained(cause, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes the hidden parts of files that killed processes were writing; nobody may be writing there."""
    parts = [
        path for path in folder.glob(".*") if re.fullmatch(r"\..+\.(pt|pth|pkl|safetensors)\.\d+", path.name)
    ]
    for path in parts:
        path.unlink(missing_ok=True)
    return parts


def _explained(error: OSError, path: Path) -> OSError:
    before = "the file from before is intact" if path.exists() else "nothing was left behind"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, f"{path}: the disk is full; {before}")
    return OSError(error.errno, f"{path}: cannot be written ({error.strerror or error}); {before}")


def _sync_directory(path: Path) -> None:
    """Makes a rename durable, where the system lets one open a directory."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
