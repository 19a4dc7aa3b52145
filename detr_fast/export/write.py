"""Detectors written in the formats that people serve, each file checked by running it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from detr_fast.engine import Detector
from detr_fast.engine.exported import ExportedModel, open_file
from detr_fast.export.check import HALF_TOLERANCE, TOLERANCE, check
from detr_fast.export.formats import FORMATS, format_of
from detr_fast.export.program import EXAMPLE
from detr_fast.export.transformers_folder import check_folder
from detr_fast.export.writers import Options


def export(
    detector: Detector,
    path: str | Path,
    *,
    format: str | None = None,
    processing: bool = True,
    half: bool = False,
    example: tuple[int, int, int, int] = EXAMPLE,
) -> Path:
    """Writes a detector into a file that other runtimes run; `detr_fast.engine.load_detector` opens it too.

    Inputs and outputs are those of `detr_fast.engine.exported`. The file is run and compared with the
    detector before it takes its name: where it differs, or cannot be made, nothing is left.

    Args:
        detector: with its model on the CPU.
        path: `.onnx`, `.xml` (OpenVINO; its weights go into a `.bin` beside it), `.pt2`, or a folder for
            transformers.
        format: by default what the suffix of `path` says. "onnx": standard operators of opset 20.
            "openvino". "torch": a program of `torch.export`, with the operators of this package. "aoti": a
            `.pt2` of machine code (AOTInductor), with attention in torch's operators. "tensorrt": the ONNX
            file. "transformers": a folder that transformers loads.
        processing: normalise pixels and decode detections inside; of no meaning for transformers.
        half: weights in float16, of OpenVINO files alone.
        example: batch, 3, height and width that the graph is recorded and checked with; any others run.

    Raises:
        ValueError: an unknown format, a model that it cannot hold, or a file that does not do what the
            detector does.
        ImportError: a package for the format is missing.
        OSError: the file cannot be written.
    """
    if isinstance(detector.model, ExportedModel):
        raise ValueError("detector: expected one with a network; got an exported file's")
    if detector.device.type != "cpu":
        raise ValueError(f"detector: expected its model on the CPU; got {detector.device}")
    path = Path(path).expanduser()
    chosen = format_of(path, format)
    if half and chosen.name != "openvino":
        raise ValueError(f"half: expected the format openvino; got {chosen.name}")
    check_example(example)
    check_place(path, folder=chosen.suffix == "")
    detector.model.eval()
    about = {
        **detector.description(),
        "processing": processing,
        "size_multiple": detector.size_multiple,
        "threshold": detector.task.threshold,
    }
    options = Options(json.dumps(about), processing, half, example)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        chosen.write(detector, draft, options)
        if chosen is FORMATS["transformers"]:
            check_folder(detector, draft)
            _replace_folder(draft, path)
            return path
        check(detector, open_file(draft)[0], path, processing, example, HALF_TOLERANCE if half else TOLERANCE)
        for file in sorted(Path(folder).iterdir()):
            shutil.move(file, path.with_name(file.name))
    return path


def check_example(example: tuple[int, int, int, int]) -> None:
    """ValueError for a shape from which no graph for all shapes can be recorded."""
    batch, channels, height, width = example
    if batch < 2 or channels != 3 or min(height, width) < 64:
        raise ValueError(
            f"example: expected a batch of 2 or more, 3 channels and sides of 64 or more; got {list(example)}"
        )


def check_place(path: Path, folder: bool) -> None:
    """OSError or ValueError where a file, or a folder, of that name cannot be put."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: cannot be written")
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file's name; got a folder")
    if folder and path.exists() and not _replaceable(path):
        raise ValueError(f"path: expected a new folder or one of transformers; {path} holds something else")


def _replaceable(path: Path) -> bool:
    return path.is_dir() and (not any(path.iterdir()) or (path / "config.json").is_file())


def _replace_folder(draft: Path, path: Path) -> None:
    """Moves a folder to its place; what was there goes with the draft's surroundings."""
    if path.exists():
        path.rename(draft.with_name(f"{path.name}.before"))
    draft.rename(path)
