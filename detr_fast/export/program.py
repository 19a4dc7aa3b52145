"""A detector as one graph of operators, for any number and size of images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detr_fast.engine import FAMILIES, Detector
from detr_fast.engine.exported import input_names, normalized
from detr_fast.export.attention import standard_operators
from detr_fast.structures import PaddedImages, Predictions

# what a graph is recorded with: no dimension is 0 or 1, and positions are enough to propose from
EXAMPLE = (2, 3, 320, 416)


class Portable(nn.Module):
    """The model of a detector from tensors to tensors, as `detr_fast.engine.exported` describes it."""

    def __init__(self, detector: Detector, processing: bool) -> None:
        super().__init__()
        self.model = detector.model
        self.find = FAMILIES[detector.family].detections if processing else None
        self.processing = processing

    def forward(self, images: Tensor, sizes: Tensor, output_sizes: Tensor | None = None) -> dict[str, Tensor]:
        height, width = images.shape[2:]
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        mask = (rows[:, None] >= sizes[:, 0, None, None]) | (columns >= sizes[:, 1, None, None])
        if self.processing:
            images = normalized(images).masked_fill(mask[:, None], 0.0)
        predictions = self.model(PaddedImages(images, mask))
        outputs = {"logits": predictions.logits[-1]}
        if isinstance(predictions, Predictions):
            outputs["boxes"] = predictions.boxes[-1]
        if predictions.masks is not None:
            outputs["masks"] = predictions.masks[-1]
        if self.find is not None and output_sizes is not None:
            found = self.find(predictions, output_sizes)
            outputs |= {"scores": found.scores, "labels": found.labels, "boxes_xyxy": found.boxes}
        return outputs


@torch.no_grad()
def record(
    detector: Detector,
    processing: bool,
    example: tuple[int, int, int, int] = EXAMPLE,
    *,
    standard: bool = False,
) -> ExportedProgram:
    """The graph for any batch, height and width; `standard`: without operators that only this package knows.

    Raises:
        ValueError: a module cannot be recorded; the message names it and says why.
    """
    batch, _, height, width = example
    sizes = torch.tensor([[height, width - 32], [height - 32, width]]).repeat(batch, 1)[:batch]
    inputs = {"images": torch.rand(example), "sizes": sizes, "output_sizes": sizes.clone()}
    any_batch = {0: Dim.DYNAMIC}
    dynamic = {
        "images": {**any_batch, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "sizes": any_batch,
        "output_sizes": any_batch,
    }
    names = input_names(detector.family, processing)
    try:
        with standard_operators() if standard else nullcontext():
            return torch.export.export(
                Portable(detector, processing).eval(),
                (),
                {name: inputs[name] for name in names},
                dynamic_shapes={name: dynamic[name] for name in names},
                strict=False,
            )
    except Exception as error:  # what a module does that no graph can hold shows in errors of many kinds
        where = module_in(error, detector.model)
        why = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ValueError(f"model: {where} cannot be recorded as a graph: {why}") from error


def module_in(error: BaseException, model: nn.Module) -> str:
    """The innermost module of `model` that was running when an error arose, by name and class."""
    names = {id(module): name for name, module in model.named_modules()}
    inner: Any = model
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        running = frame.f_locals.get("self")
        if frame.f_code.co_name == "forward" and id(running) in names:
            inner = running
        trace = trace.tb_next
    return f"{names[id(inner)] or 'the whole'} ({type(inner).__name__})"
