"""Checkpoint files that are whole or absent, and what a run needs to go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from detr_fast.checkpoints import read_file


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Saves atomically: a crash at any moment leaves the previous file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file of `write_checkpoint` that training can go on from.

    Raises as `read_file` does, and ValueError for a file without a training state.
    """
    content = read_file(path)
    if not isinstance(content, dict) or "training" not in content:
        raise ValueError(f"{path}: holds no training state to resume; start from its weights instead")
    return content


def _sync_directory(path: Path) -> None:
    """Makes a rename durable, where the system lets one open a directory."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
