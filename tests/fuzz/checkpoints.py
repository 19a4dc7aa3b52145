"""Mutated checkpoints of every format: the weights, or a ValueError, in little time and memory.

Where checksums vouch for a file, what loads after a flipped bit are the weights that were written. Pickles
are also changed behind right checksums, and made of random instructions.

`python -m tests.fuzz.checkpoints --seconds 600`
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import tempfile
import time
import warnings
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detr_fast.checkpoints import open_checkpoint, write_checkpoint
from tests.fuzz.driver import Target, main

SECONDS = 10.0
CHECKED = (".pth", ".safetensors")
NAMES = (
    "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar",
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch float32",
    "torch Size", "_codecs encode", "__builtin__ set", "argparse Namespace", "pathlib PosixPath", "os system",
)  # fmt: skip
SIMPLE = (
    b"(", b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t", b"l",
    b"d", b"\x85", b"\x86", b"\x87", b"R", b"b", b"\x81", b"\x90", b"\x91", b"\x94", b"Q", b"q\x00", b"h\x00",
    b"h\x01", b"K\x03", b"X\x01\0\0\0a", b"C\x04abcd", b"\x93",
)  # fmt: skip


@cache
def weights() -> dict[str, Tensor]:
    return {
        "backbone.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
        "head.bias": torch.ones(5, dtype=torch.float16),
        "count": torch.tensor([3, 4]),
    }


@cache
def written(kind: str) -> bytes:
    """A whole file: by its suffix, "legacy" for torch's before 1.6, or a protocol's number for arrays."""
    if kind.startswith("."):
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(weights(), path := Path(folder) / f"m{kind}")
            return path.read_bytes()
    buffer = io.BytesIO()
    if kind == "legacy":
        torch.save(OrderedDict(weights()), buffer, _use_new_zipfile_serialization=False)
    else:
        arrays = {name: tensor.numpy() for name, tensor in weights().items()}
        pickle.dump({"model": arrays, "lr": np.float64(1)}, buffer, protocol=int(kind))
    return buffer.getvalue()


def flipped(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        if not data:
            break
        place, what = rng.randrange(len(data)), rng.randrange(5)
        if what == 0:
            data[place] = rng.randrange(256)
        elif what == 1:
            data[place : place + 4] = struct.pack("<I", rng.choice((0, 2**31 - 1, 2**32 - 1, 10**9)))
        elif what == 2:
            del data[place:]
        elif what == 3:
            data[place:place] = rng.choice(SIMPLE) * rng.choice((1, 3, 1000))
        else:
            start = rng.randrange(len(data))
            data[place:place] = data[start : start + rng.randrange(40)]
    return bytes(data)


def instructions(rng: random.Random) -> bytes:
    """A pickle of random instructions."""
    parts = [b"\x80\x02"]
    for _ in range(rng.choice((5, 30, 300))):
        if rng.random() < 0.15:
            parts.append(b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n")
        else:
            parts.append(rng.choice(SIMPLE) * rng.choice((1, 1, 1, 50)))
    return b"".join(parts) + b"."


def rezipped(rng: random.Random) -> bytes:
    """An archive of torch.save whose entries were changed, swapped or left out, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(written(".pth"))) as archive:
        entries = [[name, archive.read(name)] for name in archive.namelist()]
    first, second = rng.sample(range(len(entries)), 2)
    what = rng.randrange(5)
    if what == 0:
        entries[first][0], entries[second][0] = entries[second][0], entries[first][0]
    elif what == 1:
        del entries[first]
    elif what == 2:
        entries[first][1] = damaged(entries[first][1], rng)
    else:
        pickled = next(entry for entry in entries if entry[0].endswith("data.pkl"))
        pickled[1] = damaged(pickled[1], rng) if what == 3 else instructions(rng)
    buffer = io.BytesIO()
    compression = rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    return buffer.getvalue()


def case(rng: random.Random, folder: Path) -> None:
    kind = rng.choice((".pth", ".safetensors", ".pkl", "legacy", "0", "2", "4", "5"))
    vouched = kind in CHECKED and rng.random() < 0.5
    if vouched:
        content = flipped(written(kind), rng)
    elif rng.random() < 0.3:
        content = rezipped(rng)
    elif rng.random() < 0.2:
        content = instructions(rng)
    else:
        content = damaged(written(kind), rng)
    path = folder / f"m{kind if kind.startswith('.') else rng.choice(('.pth', '.pkl', '.pt'))}"
    path.write_bytes(content)
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = open_checkpoint(path, allow_non_finite=True).state
    finally:
        path.unlink()
        assert time.process_time() - started < SECONDS
    assert state
    assert all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    for tensor in state.values():
        tensor.clone()  # reads all of its memory
    if vouched:
        assert state.keys() == weights().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights().items())


TARGET = Target("checkpoints", case, (ValueError,))

if __name__ == "__main__":
    main(TARGET)
