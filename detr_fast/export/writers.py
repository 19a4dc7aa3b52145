"""Files of the runtimes, one function a format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detr_fast import __version__
from detr_fast.engine import Detector
from detr_fast.engine.exported import KEY
from detr_fast.export.program import EXAMPLE, record

OPSET = 20


@dataclass(frozen=True)
class Options:
    """How to write.

    about: what is told of the detector in the file, as JSON.
    processing: normalise pixels and decode detections inside.
    half: weights in float16.
    example: batch, 3, height and width that the graph is recorded with.
    """

    about: str
    processing: bool = True
    half: bool = False
    example: tuple[int, int, int, int] = EXAMPLE

    def record(self, detector: Detector, standard: bool) -> ExportedProgram:
        """The detector's graph, in standard operators or with this package's."""
        return record(detector, self.processing, self.example, standard=standard)


def write_onnx(detector: Detector, path: Path, options: Options) -> None:
    """Standard operators of one opset, checked by onnx itself; the description is in the metadata."""
    import onnx
    import onnxscript  # noqa: F401 - torch.onnx needs it and says so late

    program = options.record(detector, standard=True)
    outputs: list[str] = program.call_spec.out_spec.context
    made: Any = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        output_names=outputs,
        verbose=False,
    )
    made.save(str(path), external_data=False)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for key, value in ((KEY, options.about), ("producer", f"detr_fast {__version__}")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


def write_openvino(detector: Detector, path: Path, options: Options) -> None:
    """OpenVINO's own conversion of the ONNX file."""
    import openvino  # noqa: F401 - better missed before the ONNX file is made

    onnx_file = path.with_suffix(".onnx")
    write_onnx(detector, onnx_file, options)
    openvino_of(onnx_file, path, options.half)
    onnx_file.unlink()


def openvino_of(onnx_file: Path, path: Path, half: bool = False) -> Path:
    """An ONNX file of ours as OpenVINO's, with the same description."""
    import onnx
    import openvino

    metadata = onnx.load(onnx_file, load_external_data=False).metadata_props
    model = openvino.convert_model(onnx_file)
    model.set_rt_info(next(entry.value for entry in metadata if entry.key == KEY), KEY)
    openvino.save_model(model, path, compress_to_fp16=half)
    return path


def write_torch(detector: Detector, path: Path, options: Options) -> None:
    """A program of `torch.export`, with this package's operators in it."""
    torch.export.save(
        options.record(detector, standard=False), path, extra_files={f"{KEY}.json": options.about}
    )


def write_aoti(detector: Detector, path: Path, options: Options) -> None:
    """A package of AOTInductor: machine code that runs without Python and without this package."""
    torch._inductor.aoti_compile_and_package(
        options.record(detector, standard=True),
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": {KEY: options.about}},
    )
