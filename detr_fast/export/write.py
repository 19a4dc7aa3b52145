"""Detectors written in the formats that people serve, each file checked by running it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detr_fast import __version__
from detr_fast.engine import Detector
from detr_fast.engine.exported import KEY, ExportedModel, input_names, open_file
from detr_fast.export.program import EXAMPLE, Portable, in_standard_operators, record

OPSET = 20
TOLERANCE = 1e-4  # of the largest value of an output


def export(
    detector: Detector,
    path: str | Path,
    *,
    processing: bool = True,
    half: bool = False,
    example: tuple[int, int, int, int] = EXAMPLE,
) -> Path:
    """Writes a detector into a file that other runtimes run; `detr_fast.engine.load_detector` opens it too.

    Inputs and outputs are those of `detr_fast.engine.exported`. The file is run and compared with the
    detector before it takes its name: where it differs, or cannot be made, nothing is left.

    Args:
        detector: with its model on the CPU.
        path: `.onnx` (standard operators of opset 20, which onnxruntime, OpenVINO and TensorRT read), `.xml`
            (OpenVINO; its weights go into a `.bin` beside it) or `.pt2` (`torch.export`, with the operators
            of this package).
        processing: normalise pixels and decode detections inside.
        half: weights in float16, of OpenVINO files alone.
        example: batch, 3, height and width that the graph is recorded and checked with; any others run.

    Raises:
        ValueError: an unknown format, or a file that does not do what the detector does.
        ImportError: a package for the format is missing.
    """
    if isinstance(detector.model, ExportedModel):
        raise ValueError("detector: expected one with a network; got an exported file's")
    path = Path(path).expanduser()
    write = WRITERS.get(path.suffix)
    if write is None:
        raise ValueError(f"path: expected a name that ends in {', '.join(WRITERS)}; got {path.name!r}")
    if half and path.suffix != ".xml":
        raise ValueError(f"half: expected an OpenVINO file (.xml); got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    detector.model.eval()
    about = {**detector.description(), "processing": processing, "size_multiple": detector.size_multiple}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        write(record(detector, processing, example), draft, json.dumps(about), half)
        _check(detector, draft, processing, example, 1e-2 if half else TOLERANCE)
        for file in sorted(Path(folder).iterdir()):
            shutil.move(file, path.with_name(file.name))
    return path


@torch.no_grad()
def _check(
    detector: Detector, path: Path, processing: bool, example: tuple[int, int, int, int], tolerance: float
) -> None:
    """Runs the file on batches of two shapes, none of them the one it was recorded with."""
    run, _ = open_file(path)
    network = Portable(detector, processing)
    names = input_names(detector.family, processing)
    _, _, height, width = example
    generator = torch.Generator().manual_seed(0)
    for batch, h, w in ((1, height + 32, width), (3, height, width + 64)):
        images = torch.rand(batch, 3, h, w, generator=generator) * (255 if processing else 1)
        sizes = torch.tensor([[h, w], [h - 40, w], [h, w - 72]])[:batch]
        given = {"images": images, "sizes": sizes, "output_sizes": sizes * 2}
        inputs = tuple(given[name] for name in names)
        expected, moved = network(*inputs), network(images * (1 + 1e-6), *inputs[1:])
        found = run({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        for name, wanted in expected.items():
            if not wanted.is_floating_point():
                continue
            off = (torch.from_numpy(found[name]) - wanted).abs().max().item()
            # choices among near equals turn over by rounding alone: no file does better than the model itself
            least = 3 * (moved[name] - wanted).abs().max().item()
            if not off <= max(tolerance * wanted.abs().max().item(), least):
                largest = wanted.abs().max().item()
                raise ValueError(
                    f"{path.name}: {name} of images {list(images.shape)} is off by {off:.2g}, where the "
                    f"model's largest is {largest:.2g}; the file was not kept"
                )


def _write_onnx(program: ExportedProgram, path: Path, about: str, half: bool) -> None:
    import onnx
    import onnxscript  # noqa: F401 - torch.onnx needs it and says so late

    outputs: list[str] = program.call_spec.out_spec.context
    made: Any = torch.onnx.export(
        in_standard_operators(program),
        (),
        dynamo=True,
        opset_version=OPSET,
        output_names=outputs,
        verbose=False,
    )
    made.save(str(path), external_data=False)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for key, value in ((KEY, about), ("producer", f"detr_fast {__version__}")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


def _write_openvino(program: ExportedProgram, path: Path, about: str, half: bool) -> None:
    import openvino

    onnx_file = path.with_suffix(".onnx")
    _write_onnx(program, onnx_file, about, half)
    model = openvino.convert_model(onnx_file)
    model.set_rt_info(about, KEY)
    openvino.save_model(model, path, compress_to_fp16=half)
    onnx_file.unlink()


def _write_torch(program: ExportedProgram, path: Path, about: str, half: bool) -> None:
    torch.export.save(program, path, extra_files={f"{KEY}.json": about})


WRITERS: dict[str, Callable[[ExportedProgram, Path, str, bool], None]] = {
    ".onnx": _write_onnx,
    ".xml": _write_openvino,
    ".pt2": _write_torch,
}
