"""Naming files that people take for checkpoints, by their first bytes or by the classes that they name."""

from __future__ import annotations

import zipfile
from pathlib import Path

HEAD = 512

# how files begin, and what they are
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"(\xb5/\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"GGUF", "a GGUF file of a language model"),
    (b"\x93NUMPY", "a single numpy array"),
    (b"\x7fELF", "a program"),
)
MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script", b"<error")
ONNX = (b"pytorch", b"onnx", b"tf2onnx")

# whose classes a pickle names
ORIGINS = {
    "ultralytics": "an ultralytics (YOLO) checkpoint",
    "models.yolo": "a YOLOv5 checkpoint",
    "models.common": "a YOLOv5 checkpoint",
    "mmdet": "an mmdetection checkpoint",
    "mmengine": "an mmdetection (mmengine) checkpoint",
    "mmcv": "an mmdetection (mmcv) checkpoint",
    "pytorch_lightning": "a Lightning checkpoint with more than weights",
    "lightning": "a Lightning checkpoint with more than weights",
    "omegaconf": "a checkpoint with an omegaconf configuration",
    "transformers": "a Hugging Face transformers object",
    "timm": "a pickled timm model",
    "torchvision": "a pickled torchvision model",
    "paddle": "a PaddlePaddle checkpoint",
}


def named_by_bytes(path: Path) -> str | None:
    """What a file that is no checkpoint is; None where its first bytes do not tell."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file"
    for beginning, name in BEGINNINGS:
        if head.startswith(beginning):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(MARKUP):
        return "a web page (HTML): the download went wrong"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first; torch.save's own of before 2018 must be saved anew"
    if text.startswith((b"{", b"[")) and head[8:9] != b"{":
        if b"weight_map" in head or path.name.endswith(".safetensors.index.json"):
            return "the index of a model in several safetensors files, without any weights"
        return "a JSON file"
    if head[:1] == b"\x08" and any(name in head for name in ONNX):
        return "an ONNX model"
    if head.startswith(b"PK"):
        return _named_zip(path)
    return None


def _named_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # a damaged one
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "numpy arrays (.npz)"
    if inside := [name for name in names if name.endswith((".pth", ".pt", ".pkl", ".safetensors"))]:
        return f"a zip archive around {inside[0][:80]!r}: unpack it first"
    first = ", ".join(repr(name[:40]) for name in names[:3])
    return f"a zip archive that torch.save did not write; it holds {first or 'nothing'}"


def named_by_import(name: str) -> str | None:
    """Whose checkpoint names this class or function; None for others."""
    origins = (known for module, known in ORIGINS.items() if name == module or name.startswith(f"{module}."))
    return next(origins, None)
