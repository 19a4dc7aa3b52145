"""Files that are damaged, lie or are something else: named as such, in little time and memory."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detr_fast.checkpoints import (
    atomic_write,
    open_checkpoint,
    read_checkpoint,
    read_file,
    remove_leftovers,
    write_checkpoint,
)


@pytest.fixture
def chance(rng: torch.Generator) -> random.Random:
    return random.Random(int(torch.randint(2**31, (), generator=rng)))


def state() -> dict[str, Any]:
    return {"a.weight": torch.randn(40, 30), "b.bias": torch.randn(7), "c": torch.arange(5)}


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_flipped_bit_loads_other_weights(suffix: str, tmp_path: Path, chance: random.Random) -> None:
    path, weights = tmp_path / f"m{suffix}", state()
    write_checkpoint(weights, path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert equal(read_checkpoint(path), weights)  # the flip was in what holds nothing, as padding
        except ValueError:
            refused += 1
    assert refused > 200


def test_files_without_checksums_say_so(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    for suffix, checked in ((".pth", True), (".safetensors", True), (".pkl", False)):
        write_checkpoint(state(), tmp_path / f"m{suffix}")
        assert (
            any("no checksums" in r for r in open_checkpoint(tmp_path / f"m{suffix}").remarks) is not checked
        )
    safetensors.save_file(state(), tmp_path / "m.safetensors")
    torch.save(state(), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    for suffix in (".pth", ".safetensors"):
        assert "no checksums" in open_checkpoint(tmp_path / f"m{suffix}").remarks[-1]


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], **options: Any) -> None:
    """Writes the zip archive anew, its entries as `change` wants them, with right checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            if (changed := change(name, content)) is not None:
                archive.writestr(*changed)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_archives_written_by_others_are_read(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.pth", state()
    saved(weights, path)
    rewritten(path, lambda name, content: (name, content))
    assert equal(read_checkpoint(path), weights)


def test_tensors_of_absent_devices_come_to_the_cpu(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.pth", state()
    saved(weights, path)
    before, after = (b"X" + struct.pack("<I", len(name)) + name for name in (b"cpu", b"cuda:3"))
    rewritten(path, lambda name, content: (name, content.replace(before, after)))
    assert after in path.read_bytes()
    assert equal(read_checkpoint(path), weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda n, c: (n, c[:-4]) if n.endswith("data/0") else (n, c),
            "expected 4800 bytes in the entry data/0",
        ),
        (lambda n, c: (n, c + b"1234") if n.endswith("data/0") else (n, c), "expected 4800 bytes"),
        (
            lambda n, c: None if n.endswith("data/1") else (n, c),
            "expected 28 bytes in the entry data/1; got none",
        ),
        (lambda n, c: (n.replace("data/0", "data/9"), c), "data/0; got none"),
        (lambda n, c: (n, b"big") if n.endswith("byteorder") else (n, c), "little-endian"),
        (lambda n, c: (n, c.replace(b"M\xb0\x04", b"M\xb1\x04")), "expected 4804 bytes in the entry"),
        (lambda n, c: (n, c.replace(b"K(K\x1e\x86", b"KxK\x1e\x86")), "shape .120, 30. in a storage of 1200"),
        (lambda n, c: (n, b"\x80\x02}.") if n.endswith("data.pkl") else (n, c), "expected a state dict"),
        (lambda n, c: (n, b"") if n.endswith("data.pkl") else (n, c), "damaged"),
    ],
)
def test_archives_that_lie(change: Callable[..., Any], message: str, tmp_path: Path) -> None:
    path = saved(state(), tmp_path / "m.pth")
    before = path.read_bytes()
    rewritten(path, change)
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=rf"m.pth: .*{message}"):
        read_checkpoint(path)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(1 << 20)}, tmp_path / "m.pth")
    rewritten(path, lambda name, content: (name, content), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"expected entries as torch\.save stores them; .* is compressed"):
        read_checkpoint(path)


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """A directory whose entries all lie at the same bytes."""
    path = saved({str(i): torch.zeros(1000) + i for i in range(20)}, tmp_path / "m.pth")
    content = bytearray(path.read_bytes())
    start, first = content.index(b"PK\x01\x02"), None
    while (start := content.find(b"PK\x01\x02", start)) >= 0:
        (length,) = struct.unpack_from("<H", content, start + 28)
        if b"/data/" in content[start + 46 : start + 46 + length] and length < 12:
            first = first or content[start + 42 : start + 46]
            content[start + 42 : start + 46] = first
        start += 46
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = saved(state(), tmp_path / "m.pth")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data/0", bytes(4800))
    with pytest.raises(ValueError, match="two entries of one name"):
        read_checkpoint(path)


def test_tensors_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    """Strides of 0 claim any size: building a model by such shapes would take all memory."""
    saved({"class_embed.weight": torch.zeros(1).expand(1 << 20, 1 << 10)}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"shape \[1048576, 1024\] in a storage of 1 elements"):
        read_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("opening", [b"]", b"\x8f", b"(", b"ccollections\nOrderedDict\n)R"])
def test_memory_stays_in_proportion(opening: bytes, tmp_path: Path) -> None:
    """Pickles of 100 kB that open container after container."""
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04" + opening * (100_000 // len(opening)) + b".")
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        read_file(tmp_path / "m.pkl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


def written(name: str, path: Path) -> Path:
    path.write_bytes(FOREIGN[name][0])
    return path


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def archive_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 166618694\n",
        "a Git LFS pointer",
    ),
    "html": (b"<!DOCTYPE html><html><head><title>Google Drive</title>", "a web page"),
    "html in lower case, indented": (b"\n  <html lang=en>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page"),
    "empty": (b"", "an empty file"),
    "png": (picture("PNG"), "a PNG picture"),
    "jpeg": (picture("JPEG"), "a JPEG picture"),
    "webp": (picture("WEBP"), "a WebP picture"),
    "tiff": (picture("TIFF"), "a TIFF picture"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip archive"),
    "tar": (b"model.pth".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "a tar archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.9", "an ONNX model"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}', "the index of a model"),
    "json": (b'{"id": 3}', "a JSON file"),
    "npz": (archive_of("a.npy", "b.npy"), "numpy arrays"),
    "document": (
        archive_of("[Content_Types].xml", "word/document.xml"),
        "a zip archive that torch.save did not",
    ),
    "zipped": (archive_of("weights/model.pth"), "a zip archive around 'weights/model.pth'"),
    "empty zip": (archive_of(), "a zip archive that torch.save did not write; it holds nothing"),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named(name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"m{suffix}: not a checkpoint: {FOREIGN[name][1]}"):
        read_checkpoint(written(name, tmp_path / f"m{suffix}"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ultralytics.nn.tasks DetectionModel", "an ultralytics"),
        ("models.yolo Model", "a YOLOv5 checkpoint"),
        ("mmengine.logging.history_buffer HistoryBuffer", "an mmdetection"),
        ("mmdet.models.detectors.detr DETR", "an mmdetection"),
        ("omegaconf.dictconfig DictConfig", "a checkpoint with an omegaconf configuration"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_origins_of_classes_are_named(name: str, what: str, zipped: bool, tmp_path: Path) -> None:
    module, attribute = name.split()
    content = b"\x80\x02}X\x05\0\0\0modelc" + f"{module}\n{attribute}\n".encode() + b")\x81s."
    path = tmp_path / "m.pt"
    if zipped:
        saved({}, path)
        rewritten(path, lambda n, c: (n, content if n.endswith("data.pkl") else c))
    else:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"looks like {what}.*refused, .* {module}\.{attribute}, which could run"
    ):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(tmp_path / "m.pt")


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="expected a checkpoint file; got a directory"):
        read_file(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected a checkpoint file; got a device or pipe"):
        read_file(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="dangling: no such checkpoint file"):
        read_file(tmp_path / "dangling")


class Full(io.RawIOBase):
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: Any, room: int, code: int) -> None:
        self.file, self.room, self.code = file, room, code

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(data)

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("room", [0, 100, 3000])
def test_full_disk_says_so_and_leaves_the_file(
    suffix: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, weights = tmp_path / f"m{suffix}", state()
    write_checkpoint(weights, path)
    opened = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(self, mode, **options)
        return Full(file, room, errno.ENOSPC) if "w" in mode else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        OSError, match=rf"m{suffix}: the disk is full; the file from before is intact"
    ) as caught:
        write_checkpoint(state(), path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert equal(read_checkpoint(path), weights)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_errors_of_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"m.pth: cannot be written \(No such file .*nothing was left behind"):
        write_checkpoint(state(), tmp_path / "absent" / "m.pth")


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    kept = [".hidden", "last.pt", ".last.pt", ".notes.txt.12", ".last.pt.old", "last.pt.12"]
    for name in [*kept, ".last.pt.123", ".best.pt.9", ".m.safetensors.77"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_unfinished_writes_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
