"""What a large annotation file says, kept in arrays that all processes map: a second start parses nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FORMAT = 1
SMALLEST = 16 << 20  # bytes; what is smaller is read as fast as it is found
SAMPLES, SAMPLE = 64, 4096  # of a file's content that tell it from another of its size and time

Arrays = dict[str, NDArray[Any]]


def cache_folder() -> Path:
    """`DETR_FAST_CACHE`, by default `~/.cache/detr_fast`."""
    return Path(os.environ.get("DETR_FAST_CACHE") or "~/.cache/detr_fast").expanduser()


def cached(
    path: Path, options: dict[str, Any], make: Callable[[], tuple[dict[str, Any], Arrays]]
) -> tuple[dict[str, Any], Arrays]:
    """What `make` returns, plain data and arrays: kept from an earlier start, or made and kept.

    An entry is found by the file's path, size, time of change and samples of its content, and by the options.
    One process makes it while others wait; each array has a checksum, and a damaged entry is made anew. Where
    the folder cannot be written nothing is kept.

    Args:
        path: the annotation file.
        options: what else the result depends on, as plain data.
        make: reads the file.
    """
    if path.stat().st_size < SMALLEST:
        return make()
    folder = cache_folder() / "annotations" / _digest(str(path.resolve()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        logger.debug("%s: not kept: %s", path, error)
        return make()
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        version = _version(path)
        entry = folder / f"{version}-{_digest(json.dumps(options))}"
        if (found := _read(entry)) is not None:
            return found
        found = make()
        try:
            _forget_others(folder, version)
            _write(entry, *found)
        except (OSError, ValueError, OverflowError) as error:
            logger.debug("%s: not kept: %s", path, error)
        return found


def _digest(*parts: str | bytes) -> str:
    joined = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def _version(path: Path) -> str:
    """Tells a file from what it was before."""
    status = path.stat()
    with path.open("rb") as file:
        samples = []
        for i in range(SAMPLES):
            file.seek(i * (status.st_size - SAMPLE) // (SAMPLES - 1))
            samples.append(file.read(SAMPLE))
    return _digest(str(FORMAT), str(status.st_size), str(status.st_mtime_ns), *samples)


def _read(entry: Path) -> tuple[dict[str, Any], Arrays] | None:
    """An entry, its arrays mapped; None where there is none, or a damaged one."""
    try:
        about = msgspec.json.decode((entry / "about.json").read_bytes())
        arrays = {name: _map(entry / f"{name}.npy") for name in about["checksums"]}
        if any(zlib.crc32(_bytes(array)) != about["checksums"][name] for name, array in arrays.items()):
            raise ValueError("an array is damaged")
        return about["content"], arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: made anew: %s", entry, error)
        return None


def _map(path: Path) -> NDArray[Any]:
    empty = path.stat().st_size <= 128  # a header alone cannot be mapped
    return np.load(path, mmap_mode=None if empty else "r", allow_pickle=False).view(np.ndarray)


def _bytes(array: NDArray[Any]) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _write(entry: Path, content: dict[str, Any], arrays: Arrays) -> None:
    """All or nothing: written beside, then renamed."""
    about = {"content": content, "checksums": {name: zlib.crc32(_bytes(a)) for name, a in arrays.items()}}
    beside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
    try:
        for name, array in arrays.items():
            np.save(beside / f"{name}.npy", array, allow_pickle=False)
        (beside / "about.json").write_bytes(msgspec.json.encode(about))
        shutil.rmtree(entry, ignore_errors=True)
        beside.rename(entry)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _forget_others(folder: Path, version: str) -> None:
    """Entries of what the file was before, and what a killed process left."""
    for other in folder.iterdir():
        if other.is_dir() and (not other.name.startswith(version) or "." in other.name):
            shutil.rmtree(other, ignore_errors=True)
