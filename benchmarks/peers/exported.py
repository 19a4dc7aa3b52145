"""Our models in the files that `detr-fast export` writes, run by onnxruntime and OpenVINO on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite import import_peer
from detr_fast.models import DINO, DeformableDETR

SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}
COMPILES_S = 600.0  # at the sizes of R50


def why_not(runtime: str) -> str | None:
    """Why a runtime cannot run here, or None."""
    if torch.cuda.is_available():
        return "a CPU's runtime; a machine with a GPU measures the GPU"
    names = ("onnx", "onnxscript", runtime)
    return next((missing for name in names if (missing := import_peer(name)[1]) is not None), None)


@lru_cache(maxsize=1)  # cases of one model follow each other
def _folder(model: nn.Module) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="detr_fast-exported-")


def forward_of(model: Any, runtime: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pixels [B, 3, H, W] -> the last layer's classes and boxes or masks, on as many threads as torch has."""
    from detr_fast.engine import Detector
    from detr_fast.engine.exported import Runtime, open_file
    from detr_fast.export import export

    families = ((DINO, "dino"), (DeformableDETR, "deformable-detr"))
    family = next((name for kind, name in families if isinstance(model, kind)), "mask2former")
    task = "panoptic" if family == "mask2former" else "detection"
    path = Path(_folder(model).name) / f"model{SUFFIXES[runtime]}"
    if not path.exists():
        export(Detector(model, {}, family=family, task_name=task), path, processing=False)
    run, _ = open_file(path, Runtime(threads=torch.get_num_threads()))

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor([pixels.shape[2:]]).repeat(len(pixels), 1)
        found = run({"images": pixels.numpy(), "sizes": sizes.numpy()})
        places = found["boxes"] if "boxes" in found else found["masks"]
        return torch.from_numpy(found["logits"]), torch.from_numpy(places)

    return forward
