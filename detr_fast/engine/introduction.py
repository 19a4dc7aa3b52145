"""What a run is about to do, in a few lines: the model, its data, its settings, its time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from detr_fast.data.transforms import resized_size
from detr_fast.distributed import world_size
from detr_fast.engine.detector import Detector
from detr_fast.engine.train import Trainer
from detr_fast.models.backbones import features_of
from detr_fast.models.multi_scale import MultiScaleModel
from detr_fast.structures import PaddedImages

NAMES = 10  # classes that are named
BACKWARD = 3  # a step is about as long as so many forward passes
ASPECT = 4 / 3  # width over height of a usual photograph


def introduction(trainer: Trainer, detector: Detector) -> Iterator[str]:
    """The lines; one forward pass of the evaluated model tells the time of a step."""
    config, dataset = trainer.config, trainer.dataset
    parameters = list(detector.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    copies = 3 + (trainer.average is not None)  # gradients and AdamW's two moments beside
    memory = 4 * (total + trained * copies) / 2**30
    device = str(trainer.device)
    if trainer.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(trainer.device)})"
    else:
        device += f" ({torch.get_num_threads()} threads)"
    yield (
        f"model: {detector.family} with {detector.config.backbone}, {total / 1e6:.1f} million parameters, "
        f"{trained / 1e6:.1f} trained; on {device}, {world_size()} process{'es' * (world_size() > 1)}; "
        f"weights and optimizer {memory:.2f} GiB"
    )
    objects = "" if dataset.num_objects is None else f", {dataset.num_objects} objects"
    names = [name for _, name in detector.categories.values()]
    yield f"data: {len(dataset)} images{objects}, {len(names)} classes: {_shortened(names)}"
    per_step = config.batch_size * config.accumulate * world_size()
    rates = sorted({group["initial_lr"] for group in trainer.optimizer.param_groups}, reverse=True)
    yield (
        f"steps: {per_step} images each, {trainer.steps_per_epoch} an epoch, {config.epochs} epochs; "
        f"learning rates {', '.join(f'{rate:g}' for rate in rates)}, a tenth after {config.lr_drop} epochs"
    )
    short = detector.image_size
    width, height = resized_size(round(short * ASPECT), short, short, detector.max_size)
    levels, seconds = _tried(detector.model, trainer.device, (height, width), detector.size_multiple)
    step = BACKWARD * seconds * config.batch_size * config.accumulate
    positions = " + ".join(f"{h}x{w}" for h, w in levels)
    yield (
        f"images: {short} pixels, at most {detector.max_size}; of {width}x{height} the model sees "
        f"{positions} = {sum(h * w for h, w in levels)} positions, about {step:.2g} s a step"
    )


def _shortened(names: Iterable[str]) -> str:
    first = list(names)
    more = len(first) - NAMES
    return ", ".join(first[:NAMES]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def _tried(
    model: nn.Module, device: torch.device, size: tuple[int, int], multiple: int
) -> tuple[list[tuple[int, int]], float]:
    """The (height, width) of the maps that the transformer sees, and the seconds of a forward pass."""
    images = PaddedImages.from_list([torch.zeros(3, *size)], multiple=multiple).to(device)
    training = model.training
    model.eval()
    levels = _levels(model, images)
    seconds = []
    for _ in range(2):  # the first pass also warms up
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    model.train(training)
    return levels, min(seconds)


def _levels(model: nn.Module, images: PaddedImages) -> list[tuple[int, int]]:
    if isinstance(model, MultiScaleModel):
        return model.feature_levels(images)[2].shapes
    detector: Any = getattr(model, "detr", model)
    backbone = detector.backbone
    cnn = backbone[0] if isinstance(backbone, nn.ModuleList) else backbone
    features = features_of(cnn, images.tensors, images.mask)
    return [
        (x.shape[2], x.shape[3]) for x in (features[-1:] if hasattr(detector, "stages") else features[1:])
    ]
