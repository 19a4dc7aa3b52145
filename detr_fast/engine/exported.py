"""Detectors in files that other runtimes run: onnxruntime, OpenVINO, or torch without this package's models.

Such a file takes `images` [B, 3, H, W] float32 and `sizes` [B, 2] int64, the height and width of each image
in the padded batch, and gives what the last decoder layer predicts: `logits` and, by family, `boxes` and
`masks`. With processing inside, pixels are RGB in 0..255, and families that detect take `output_sizes` [B, 2]
and give `scores`, `labels` and `boxes_xyxy`, too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from detr_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from detr_fast.families import FAMILIES
from detr_fast.structures import MaskPredictions, PaddedImages, Predictions

Arrays: TypeAlias = Mapping[str, np.ndarray]
Run: TypeAlias = Callable[[Arrays], Arrays]

KEY = "detr_fast"  # of the description in a file's metadata


@dataclass(frozen=True)
class Runtime:
    """How a file is run.

    Args:
        threads: CPU threads; None leaves them to the runtime.
        dtype: what OpenVINO computes in, float32 or bfloat16.
    """

    threads: int | None = None
    dtype: torch.dtype = torch.float32


class ExportedModel(nn.Module):
    """A file in place of the network it was exported from; it takes no part in training.

    Args:
        run: from named inputs to named outputs.
        family: of the network.
        config: of the network.
        processing: whether the file normalises pixels itself.
        size_multiple: what height and width of a batch must be a multiple of.
    """

    def __init__(self, run: Run, family: str, config: Any, processing: bool, size_multiple: int) -> None:
        super().__init__()
        self.run = run
        self.names = input_names(family, processing)
        self.config = config
        self.processing = processing
        self.size_multiple = size_multiple
        # says where inputs are wanted
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: PaddedImages) -> Predictions | MaskPredictions:
        """Predictions of the last decoder layer, on the CPU."""
        outputs = {name: torch.from_numpy(array) for name, array in self.run(self.inputs(images)).items()}
        logits = outputs["logits"][None]
        masks = outputs["masks"][None] if "masks" in outputs else None
        if "boxes" in outputs:
            return Predictions(logits, outputs["boxes"][None], masks=masks)
        assert masks is not None
        return MaskPredictions(logits, masks)

    def inputs(self, images: PaddedImages) -> dict[str, np.ndarray]:
        """What the file takes, from normalised images."""
        pixels, valid = images.tensors, ~images.mask
        sizes = torch.stack((valid[:, :, 0].sum(1), valid[:, 0].sum(1)), dim=1)
        if self.processing:
            pixels = (pixels * _channels(IMAGENET_STD) + _channels(IMAGENET_MEAN)) * 255
        given = {"images": pixels.float(), "sizes": sizes, "output_sizes": sizes}
        return {name: given[name].contiguous().numpy() for name in self.names}


def input_names(family: str, processing: bool) -> tuple[str, ...]:
    """What a file takes; sizes of results where detections are decoded inside."""
    decodes = processing and FAMILIES[family].detections is not None
    return ("images", "sizes", "output_sizes") if decodes else ("images", "sizes")


def normalized(pixels: Tensor) -> Tensor:
    """RGB pixels in 0..255, [B, 3, H, W], as models take them."""
    return (pixels / 255 - _channels(IMAGENET_MEAN)) / _channels(IMAGENET_STD)


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


_OPENVINO_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def open_file(path: Path, runtime: Runtime | None = None) -> tuple[Run, dict[str, Any]]:
    """How to run an exported file, and the description in it.

    Raises:
        ValueError: it is damaged, or this package did not write it.
        ImportError: its runtime is not installed.
    """
    try:
        run, text = OPENERS[path.suffix](path, runtime or Runtime())
    except (ImportError, OSError):
        raise
    except Exception as error:  # each runtime has errors of its own
        what = str(error).strip().partition("\n")[0][:300]
        raise ValueError(f"{path}: damaged, or no exported file: {what or type(error).__name__}") from error
    if not text:
        raise ValueError(f"{path}: expected a file that `detr-fast export` wrote; it has no description")
    return run, json.loads(text)


def _open_onnx(path: Path, runtime: Runtime) -> tuple[Run, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads or 0  # 0: its own choice
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    names = {wanted.name for wanted in session.get_inputs()}

    def run(inputs: Arrays) -> Arrays:
        found = session.run(outputs, {name: array for name, array in inputs.items() if name in names})
        return dict(zip(outputs, found, strict=True))

    return run, session.get_modelmeta().custom_metadata_map.get(KEY)


def _open_openvino(path: Path, runtime: Runtime) -> tuple[Run, str | None]:
    import openvino

    model = openvino.Core().read_model(path)
    # bfloat16 would be its own choice on CPUs that have it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _OPENVINO_DTYPES[runtime.dtype]}
    if runtime.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = runtime.threads
    compiled = openvino.compile_model(model, "CPU", settings)
    names = {wanted.any_name for wanted in compiled.inputs}

    def run(inputs: Arrays) -> Arrays:
        found = compiled({name: array for name, array in inputs.items() if name in names})
        return {output.any_name: found[output] for output in compiled.outputs}

    return run, model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None


def _open_torch(path: Path, runtime: Runtime) -> tuple[Run, str | None]:
    import detr_fast.ops  # noqa: F401 - registers the operators in the file

    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if _is_compiled(path):
        return _open_compiled(path)
    about = {f"{KEY}.json": ""}
    module: Any = torch.export.load(path, extra_files=about).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}

    return run, about[f"{KEY}.json"]


def _is_compiled(path: Path) -> bool:
    """Whether an archive holds machine code of AOTInductor, not a graph."""
    with zipfile.ZipFile(path) as archive:
        return any("/data/aotinductor/" in name for name in archive.namelist())


def _open_compiled(path: Path) -> tuple[Run, str | None]:
    program = torch._inductor.aoti_load_package(str(path))

    def run(inputs: Arrays) -> Arrays:
        found = program(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}

    return run, program.get_metadata().get(KEY)


OPENERS: dict[str, Callable[[Path, Runtime], tuple[Run, str | None]]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_torch,
}
