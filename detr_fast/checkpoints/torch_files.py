"""Files of torch.save: the zip archives of today, and those from before torch 1.6."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_fast.checkpoints.pickle_machine import interpret
from detr_fast.checkpoints.pickle_tensors import TORCH_NAMES, Storage, StorageKind
from detr_fast.checkpoints.pickle_values import values

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled
CHUNK = 1 << 20


def read_zip(path: Path) -> Any:
    """What an archive of torch.save holds, every entry checked against its checksum."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        size_of_file = os.fstat(file.fileno()).st_size  # a run may replace the file at `path` meanwhile
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("a zip archive without the entry data.pkl that torch.save writes")
        (root,) = roots
        if f"{root}constants.pkl" in entries:
            raise ValueError("a TorchScript program; expected a state dict")
        _check_entries(archive.infolist(), size_of_file)
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
        if order != b"little":
            raise ValueError(f"expected numbers in little-endian order; got {order[:20]!r}")
        storages: dict[str, Storage] = {}

        def storage(identity: Any) -> Storage:
            kind, key, size, _ = _storage_identity(identity)
            if key not in storages:
                info = entries.get(f"{root}data/{key}")
                if info is None or info.file_size != size:
                    found = "none" if info is None else f"{info.file_size}"
                    raise ValueError(f"expected {size} bytes in the entry data/{key[:40]}; got {found}")
                storages[key] = Storage(_read_bytes(archive, info), kind.dtype)
            return Storage(storages[key].data, kind.dtype)

        content = interpret(io.BytesIO(archive.read(f"{root}data.pkl")), TORCH_NAMES, storage)
        read = {f"{root}data.pkl", f"{root}byteorder", *(f"{root}data/{key}" for key in storages)}
        for name in entries.keys() - read:
            _read_bytes(archive, entries[name])
        return values(content, size_of_file)


def _check_entries(infos: list[zipfile.ZipInfo], size_of_file: int) -> None:
    if len({info.filename for info in infos}) != len(infos):
        raise ValueError("a zip archive with two entries of one name")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(
                f"expected entries as torch.save stores them; {info.filename[:80]!r} is compressed"
            )
        if not 0 <= info.header_offset < size_of_file:
            raise ValueError(f"{info.filename[:80]!r} lies outside of the file")
        if info.flag_bits & 1:
            raise ValueError(f"{info.filename[:80]!r} is encrypted")
    if sum(info.file_size for info in infos) > size_of_file:
        raise ValueError("a zip archive whose entries overlap")


def _read_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """An entry's bytes [n]; zipfile compares their checksum when the last are read."""
    data = torch.empty(info.file_size, dtype=torch.uint8)
    view, position = data.numpy().data, 0
    with archive.open(info) as file:
        while chunk := file.read(CHUNK):
            view[position : position + len(chunk)] = chunk
            position += len(chunk)
    if position != info.file_size:
        raise ValueError(f"{info.filename[:80]!r} is cut off")
    return data


def read_legacy(content: bytes) -> Any:
    """What a file of torch.save from before torch 1.6 holds. Such files carry no checksums."""
    file = io.BytesIO(content)
    for _ in range(2):  # the magic number and the protocol
        interpret(file, {})
    if interpret(file, {}).get("little_endian") is not True:
        raise ValueError("expected numbers in little-endian order")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        kind, key, size, view = _storage_identity(identity)
        if key not in storages:
            if sum(known.data.numel() for known in storages.values()) + size > len(content):
                raise ValueError("storages larger than the file")
            storages[key] = Storage(torch.empty(size, dtype=torch.uint8), kind.dtype)
        return Storage(storages[key].data[view], kind.dtype)

    found = interpret(file, TORCH_NAMES, storage)
    keys = interpret(file, {})
    if not isinstance(keys, list) or set(keys) != storages.keys():
        raise ValueError("expected the tensors' storages behind the pickle; got others")
    for key in keys:
        data, dtype = storages[key].data, storages[key].dtype
        (elements,) = struct.unpack("<q", file.read(8))
        if elements * (1 if dtype is None else dtype.itemsize) != data.numel():
            raise ValueError(
                f"expected {data.numel()} bytes in the storage {key[:40]}; got {elements} elements"
            )
        start = file.tell()
        file.seek(data.numel(), io.SEEK_CUR)
        data.numpy()[:] = memoryview(content)[start : file.tell()]
    return values(found, len(content))


def _storage_identity(identity: Any) -> tuple[StorageKind, str, int, slice]:
    """Kind, key, size and a view's part, in bytes, of ("storage", kind, key, device, elements[, view])."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("a reference to something that is no storage")
    _, kind, key, _, elements, view = (*identity, None)[:6]
    if not isinstance(kind, StorageKind):
        raise ValueError("expected tensors of numbers; got quantised ones")
    if not isinstance(key, str) or type(elements) is not int or not 0 <= elements < 2**60:
        raise ValueError("a storage without key or size")
    itemsize = 1 if kind.dtype is None else kind.dtype.itemsize
    start, size = (0, elements) if view is None else view[1:]
    if not 0 <= start <= start + size <= elements:
        raise ValueError("a part of a storage that lies outside of it")
    return kind, key, elements * itemsize, slice(start * itemsize, (start + size) * itemsize)
