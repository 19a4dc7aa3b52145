"""Files of the package safetensors, and the checksum that ours carry in their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

CHECKSUM = "sha256"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether it carries a checksum, which is verified then."""
    package, functions = _package(path)
    content = path.read_bytes()
    try:
        tensors: dict[str, Tensor] = functions.load(content)
    except package.SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    size = int.from_bytes(content[:8], "little")
    expected = json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(CHECKSUM)
    if expected is not None and expected != _checksum(tensors):
        raise ValueError("the tensors do not have the checksum that the file states")
    return tensors, expected is not None


def write_safetensors(tensors: Mapping[str, Tensor], file: IO[bytes], path: Path) -> None:
    """Writes tensors with their checksum; those that share memory are stored once for each name."""
    separate = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    # transformers takes files alone that say whose tensors they hold
    file.write(_package(path)[1].save(separate, {CHECKSUM: _checksum(separate), "format": "pt"}))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _package(path: Path) -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{path}: .safetensors files need the package safetensors", name="safetensors"
        ) from error
    return safetensors, safetensors.torch
