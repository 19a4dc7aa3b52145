"""Checkpoint files: .pth and whatever else torch.save wrote, .safetensors, and detectron2's .pkl."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_fast.checkpoints.pickles import Refused, read_pickle

# how files of torch.save begin, those of today and those before torch 1.6
TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def read_file(path: str | Path) -> Any:
    """What a checkpoint file holds, on the CPU; a file that could run code is refused.

    A .pkl file is read as detectron2 writes it, with numpy arrays; they come as tensors.

    Raises FileNotFoundError, or ValueError for one that is damaged or holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        if path.suffix == ".pkl":
            content = path.read_bytes()
            if not content.startswith(TORCH):
                return read_pickle(content)
        return _read_torch(path)
    except Refused as error:
        raise ValueError(
            f"{path}: refused, because unpickling it would import {error}, which could run code; "
            "expected tensors and plain data only"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damage shows in errors of a dozen kinds
        raise ValueError(f"{path}: damaged, or not a checkpoint: {error or type(error).__name__}") from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, unwrapped from `{"model": ...}`, on the CPU.

    Raises as `read_file` does, and ValueError where there is no state dict.
    """
    content = read_file(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: expected a state dict of tensors; got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state dict of tensors; {name!r} is a {type(value).__name__}"
            )
    return dict(content)


def write_checkpoint(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a state dict as the official codes do, in the format that the suffix of `path` names.

    .pth: torch's, `{"model": state}`. .pkl: detectron2's, `{"model": arrays, "__author__": ...}`.
    .safetensors: the tensors alone; those that share memory are stored once for each name.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if path.suffix == ".pth":
        torch.save({"model": tensors}, path)
    elif path.suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "detr_fast"}, protocol=4))
    elif path.suffix == ".safetensors":
        separate = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        _safetensors(path)[1].save_file(separate, path)
    else:
        raise ValueError(f"path: expected a name that ends in .pth, .pkl or .safetensors; got {path}")


def _read_torch(path: Path) -> Any:
    try:
        # official DETR checkpoints keep their command line, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError("in an unsupported pickle protocol") from error
        raise Refused(found[1]) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    package, functions = _safetensors(path)
    try:
        return functions.load_file(path)
    except package.SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file: {error}") from error


def _safetensors(path: Path) -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{path}: .safetensors files need the package safetensors") from error
    return safetensors, safetensors.torch
