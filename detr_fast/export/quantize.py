"""Convolutions in 8 bits, by onnxruntime's own tool, kept only where the answers stay."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_fast.data import ImageDataset
from detr_fast.engine import Detector, evaluate, load_detector
from detr_fast.engine.inference import padded, pixels_of
from detr_fast.engine.inputs import as_images
from detr_fast.engine.sources import find_sources
from detr_fast.export.formats import format_of
from detr_fast.export.program import EXAMPLE
from detr_fast.export.write import check_place, export
from detr_fast.export.writers import openvino_of

FORMATS = ("onnx", "tensorrt", "openvino")
# where attention samples, and boxes, cannot bear 8 bits; convolutions take most of the time
QUANTIZED = ("Conv",)


@dataclass(frozen=True)
class Quantized:
    """What quantisation did.

    metric: its name, as "AP".
    before, after: of the file in float32, and in 8 bits.
    path: of the file that was kept.
    """

    metric: str
    before: float
    after: float
    path: Path


def export_int8(
    detector: Detector,
    path: str | Path,
    calibration: str | Path | Sequence[Path],
    dataset: ImageDataset,
    *,
    format: str | None = None,
    processing: bool = True,
    max_drop: float = 0.01,
    example: tuple[int, int, int, int] = EXAMPLE,
    most: int = 100,
) -> Quantized:
    """Writes a detector whose convolutions compute in 8 bits (QDQ, a scale for each channel of the weights).

    Args:
        detector: see `export`.
        path: likewise.
        calibration: a folder of images like those to come, or images; they tell the ranges of activations.
        dataset: annotated, to measure the task's number on, before and after.
        format: ONNX or OpenVINO; see `export`.
        processing: see `export`.
        max_drop: how much that number may fall, in 0..1.
        example: see `export`.
        most: images of `calibration` that are used, evenly spread over all.

    Raises:
        ValueError: the number falls by more; nothing is kept. Or as `export` does.
        FileNotFoundError: no image is there to calibrate with.
    """
    path = Path(path).expanduser()
    chosen = format_of(path, format)
    if chosen.name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)} with int8; got {chosen.name}")
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop: expected a share in 0..1; got {max_drop}")
    check_place(path, folder=False)
    images = _images(calibration)
    images = images[:: -(-len(images) // most)]
    metric = detector.task.best_metric
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        plain = export(detector, Path(folder) / "plain.onnx", processing=processing, example=example)
        draft = Path(folder) / path.with_suffix(".onnx").name
        float32 = load_detector(plain)
        _quantize(float32, plain, draft, images)
        if chosen.name == "openvino":
            draft = openvino_of(draft, Path(folder) / path.name)
        before, after = (evaluate(d, dataset)[metric] for d in (float32, load_detector(draft)))
        if not before - after <= max_drop:
            raise ValueError(
                f"max_drop: expected {metric} to fall by no more than {max_drop}; in 8 bits it fell from "
                f"{before:.4f} to {after:.4f}; the file was not kept"
            )
        for file in (draft.with_suffix(".bin"), draft):
            if file.exists():
                shutil.move(file, path.with_name(file.name))
    return Quantized(metric, before, after, path)


def _images(calibration: str | Path | Sequence[Path]) -> list[Path]:
    if not isinstance(calibration, str | Path):
        return list(calibration)
    folder = Path(calibration).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images to calibrate with; there is none")
    return [Path(source.file) for source in find_sources([folder], recursive=True) if not source.is_video]


def _quantize(float32: Detector, plain: Path, draft: Path, images: Sequence[Path]) -> None:
    import onnx
    from onnxruntime import quantization

    model: Any = float32.model

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = (
                model.inputs(padded(float32, [pixels_of(float32, image)])) for image in as_images(images)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = plain.with_name("prepared.onnx")
    # weights become constants, so that they can be quantised
    quantization.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(draft),
        Reader(),
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    quantized: Any = onnx.load(draft)
    used = {node.domain for node in quantized.graph.node}
    kept = [opset for opset in quantized.opset_import if opset.domain in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(kept)
    onnx.save(quantized, draft)
