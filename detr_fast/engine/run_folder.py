"""One run a folder: a lock file that names its owner."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detr_fast.checkpoints import remove_leftovers

logger = logging.getLogger(__name__)

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# forked processes share their parent's locks; those that read images would hold a killed run's
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class FolderInUseError(ValueError):
    """Another run writes into the folder; the message names its process and machine."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, and removes what killed ones were writing there.

    The system releases the lock of a process that died, so a lock file alone stops nobody.

    Raises:
        FolderInUseError: a run that is alive has the folder.
    """
    path = folder / LOCK
    descriptor = _locked(path)
    _held.add(descriptor)
    try:
        remove_leftovers(folder)
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            path.unlink(missing_ok=True)
            _held.remove(descriptor)
            os.close(descriptor)


def _locked(path: Path) -> int:
    """An open file that this process alone has locked, its owner written into it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise FolderInUseError(
                f"{path.parent}: {owner} trains into this folder; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            logger.warning("%s: this file system has no locks: see that one run alone uses it", path.parent)
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its owner has removed it meanwhile
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
