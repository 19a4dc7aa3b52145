"""Whole models and losses of transformers before and after `detr_fast.accelerate`, in turns, in one process.

    python -m benchmarks.integrations [--threads 2] [name ...]

Models are random and of their default size.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import detr_fast
from benchmarks.clocks import Call, interleaved

hf: Any = import_module("transformers")
RESNET = hf.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
RT_RESNET = hf.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])


def deformable_detr() -> nn.Module:
    return hf.DeformableDetrForObjectDetection(
        hf.DeformableDetrConfig(backbone_config=RESNET, auxiliary_loss=True)
    )


def detr() -> nn.Module:
    return hf.DetrForObjectDetection(
        hf.DetrConfig(backbone_config=RESNET, auxiliary_loss=True, num_labels=91)
    )


def rt_detr() -> nn.Module:
    return hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=RT_RESNET))


def mask2former() -> nn.Module:
    return hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "deformable_detr": (deformable_detr, (800, 1066)),
    "detr": (detr, (800, 1066)),
    "rt_detr": (rt_detr, (640, 640)),
    "mask2former": (mask2former, (800, 1088)),
}
LOSSES = ("detr", "deformable_detr")


def targets(images: int, count: int, classes: int) -> list[dict[str, Tensor]]:
    boxes = torch.rand(images, count, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1
    return [{"class_labels": torch.randint(0, classes, (count,)), "boxes": x} for x in boxes]


def compare(title: str, before: Call, after: dict[str, Call]) -> None:
    """Prints the medians of both sides, in turns, and the gain."""
    for name, call in after.items():
        first = []
        for side in (call, before):
            start = time.perf_counter()
            side()
            first.append(time.perf_counter() - start)
        found = interleaved(call, before, first)
        print(f"{title}, {name}: {found['ratio']:.2f}x {found}", flush=True)


def model_case(name: str) -> None:
    build, size = MODELS[name]
    before = build().eval()
    after, folded = copy.deepcopy(before), copy.deepcopy(before)
    detr_fast.accelerate(after)
    detr_fast.accelerate(folded, inference=True)
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        calls: dict[str, Call] = {
            "accelerate": lambda: after(pixel_values=image),
            "accelerate with inference=True": lambda: folded(pixel_values=image),
        }
        compare(f"{name} inference", lambda: before(pixel_values=image), calls)


def loss_case(name: str) -> None:
    """A loss with gradients: 4 images of 20 targets, all decoder layers."""
    model: Any = MODELS[name][0]()
    config = model.config
    layers, classes = config.decoder_layers, config.num_labels + (name == "detr")
    logits = torch.randn(layers, 4, config.num_queries, classes, requires_grad=True)
    boxes = (torch.rand(layers, 4, config.num_queries, 4) * 0.4 + 0.1).requires_grad_()
    labels = targets(4, 20, config.num_labels)

    def call(loss: Any) -> None:
        total, _, _ = loss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
        torch.autograd.grad(total, (logits, boxes))

    original = model.loss_function
    detr_fast.accelerate(model)
    fast = model.loss_function
    compare(f"{name} loss", lambda: call(original), {"accelerate": lambda: call(fast)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in options.names:
        model_case(name)
        if name in LOSSES:
            loss_case(name)


if __name__ == "__main__":
    main()
