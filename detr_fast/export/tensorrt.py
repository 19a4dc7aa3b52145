"""How TensorRT builds an engine from our ONNX files, which hold operators of its documented set alone."""

from __future__ import annotations

from pathlib import Path

from detr_fast.engine import Detector
from detr_fast.engine.exported import input_names

STRIDE = 32  # of the coarsest maps that every backbone has
BATCHES = (1, 1, 4)
PRECISION = (
    "precision: float32 keeps the answers, with TF32 as trtexec has it; --fp16 and --bf16 round the places "
    "where attention samples (by 0.06 of 128 pixels in fp16, 0.5 in bf16): measure the AP before you use them"
)


def trtexec_lines(detector: Detector, path: Path, processing: bool = True) -> list[str]:
    """The command that builds an engine from an ONNX file, and which precision is safe. No plugin is needed.

    Sizes range from half the short side that the detector takes to squares of its longest side, and batches
    from 1 to 4; the engine is tuned for one image of the usual shape.
    """
    short, long = (-(-side // STRIDE) * STRIDE for side in (detector.image_size, detector.max_size))
    least = max(STRIDE, short // 2 // STRIDE * STRIDE)
    sides = ((least, least), (short, long), (long, long))
    shapes = []
    for kind, batch, (height, width) in zip(("min", "opt", "max"), BATCHES, sides, strict=True):
        names = input_names(detector.family, processing)
        wanted = [f"images:{batch}x3x{height}x{width}", *(f"{name}:{batch}x2" for name in names[1:])]
        shapes.append(f"--{kind}Shapes={','.join(wanted)}")
    engine = path.with_suffix(".engine")
    return [f"for TensorRT: trtexec --onnx={path} --saveEngine={engine} {' '.join(shapes)}", PRECISION]
