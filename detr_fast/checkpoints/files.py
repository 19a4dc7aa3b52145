"""Checkpoint files: .pth and whatever else torch.save wrote, .safetensors, and detectron2's .pkl."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_fast.checkpoints.atomic import atomic_write
from detr_fast.checkpoints.contents import find_state
from detr_fast.checkpoints.foreign import named_by_bytes, named_by_import
from detr_fast.checkpoints.pickle_arrays import read_pickle
from detr_fast.checkpoints.pickle_machine import Refused
from detr_fast.checkpoints.safetensors_files import read_safetensors, write_safetensors
from detr_fast.checkpoints.torch_files import LEGACY, read_legacy, read_zip
from detr_fast.checkpoints.transformers_files import is_transformers, read_folder

FORMATS = ".pth, .pkl or .safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    state: the weights, under the names that their model gave them.
    content: all of it.
    remarks: a line for each thing that a person should know, as which entry the weights were taken from.
    """

    state: dict[str, Tensor]
    content: Any
    remarks: tuple[str, ...]


def read_file(path: str | Path) -> Any:
    """What a checkpoint file holds, on the CPU; a file that could run code is refused.

    Arrays of numpy come as tensors, ordered dictionaries as plain ones. Nothing of a file is run, and reading
    takes time and memory in proportion to its size. Checksums are verified where there are some: in files of
    torch.save since 1.6, and in .safetensors that `write_checkpoint` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, something else than a checkpoint (the message says what), or holds more
            than tensors and plain data.
        ImportError: it needs the package safetensors, which is not installed.
        OSError: it cannot be read.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Any, bool]:
    """As `read_file`, and whether checksums vouch for it."""
    if path.is_dir():
        raise ValueError(f"{path}: expected a checkpoint file; got a directory")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint file; got a device or pipe")
    if (name := named_by_bytes(path)) is not None:
        raise ValueError(f"{path}: not a checkpoint: {name}")
    try:
        return _parse(path)
    except Refused as refused:
        origin = named_by_import(refused.name)
        raise ValueError(
            f"{path}: {f'looks like {origin}; ' if origin else ''}refused, because unpickling it would "
            f"import {refused.name:.200}, which could run code; expected tensors and plain data only"
        ) from refused
    except (OSError, ImportError):
        raise
    except MemoryError as error:
        raise ValueError(f"{path}: too large for this machine's memory") from error
    except Exception as error:  # damage shows in errors of a dozen kinds
        what = f"{error}"[:500] or type(error).__name__
        raise ValueError(f"{path}: damaged, or not a checkpoint: {what}") from error


def _parse(path: Path) -> tuple[Any, bool]:
    with path.open("rb") as file:
        beginning = file.read(len(LEGACY))
    if path.suffix == ".safetensors" or beginning[8:9] == b"{":
        return read_safetensors(path)
    if beginning.startswith(b"PK"):
        return read_zip(path), True
    content = path.read_bytes()
    return (read_legacy if beginning == LEGACY else read_pickle)(content), False


def open_checkpoint(path: str | Path, *, allow_non_finite: bool = False) -> Checkpoint:
    """Reads a file and finds the weights in it, whatever training code wrote it.

    They may lie at the top or under "model", "state_dict", "ema" and others, and their names may begin with
    what wrappers add ("module.", "_orig_mod.", "model."). A folder of transformers, or a weights file beside
    its `config.json`, gives the official names too; its content is {"args": ..., "transformers": `Folder`}.

    Args:
        path: the file or folder.
        allow_non_finite: take weights that are NaN or infinite, too.

    Raises:
        As `read_file`, and ValueError where there is no state dict, or several and nothing tells which, or
        where weights are not finite.
    """
    path = Path(path)
    checkpoint = _open_folder(path) if is_transformers(path) else _open_file(path)
    if not allow_non_finite:
        try:
            _check_finite(checkpoint.state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return checkpoint


def _open_file(path: Path) -> Checkpoint:
    content, verified = _read(path)
    try:
        state, remarks = find_state(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not verified:
        remarks.append(
            "the file's format carries no checksums: damage inside of its tensors would go unnoticed"
        )
    return Checkpoint(state, content, tuple(remarks))


def _open_folder(path: Path) -> Checkpoint:
    folder = read_folder(path, read_file)
    return Checkpoint(folder.state, {"args": folder.options, "transformers": folder}, folder.remarks)


def read_checkpoint(path: str | Path, *, allow_non_finite: bool = False) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU; see `open_checkpoint`."""
    return open_checkpoint(path, allow_non_finite=allow_non_finite).state


def write_checkpoint(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a state dict as the official codes do, in the format that the suffix of `path` names.

    .pth: torch's, `{"model": state}`. .pkl: detectron2's, `{"model": arrays, "__author__": ...}`, without
    checksums. .safetensors: the tensors, and in the metadata a checksum of them; those that share memory are
    stored once for each name. The file is whole or absent, see `atomic_write`.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if path.suffix not in (".pth", ".pkl", ".safetensors"):
        raise ValueError(f"path: expected a name that ends in {FORMATS}; got {path}")
    with atomic_write(path) as file:
        if path.suffix == ".pth":
            torch.save({"model": tensors}, file)
        elif path.suffix == ".pkl":
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            pickle.dump({"model": arrays, "__author__": "detr_fast"}, file, protocol=4)
        else:
            write_safetensors(tensors, file, path)


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = [
        name
        for name, tensor in state.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and not _finite(tensor)
    ]
    if bad:
        raise ValueError(
            f"expected finite weights; {len(bad)} of {len(state)} entries hold NaN or infinite numbers, the "
            f"first {bad[0]!r}; allow_non_finite (--allow-non-finite) loads them nevertheless"
        )


def _finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:  # float8: few functions know it
        tensor = tensor.float()
    return bool(tensor.isfinite().all())
