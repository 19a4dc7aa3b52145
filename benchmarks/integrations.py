"""Whole models and losses of transformers before and after `detr_fast.accelerate`, in turns, in one process.

    python -m benchmarks.integrations [--threads 2] [--only inference] [--only step] [--only loss] [name ...]

Models are random and of their default size. "inference" is one image; the share is the time that, before,
the modules take which are replaced. "step" is a training step, loss and backward, of one image of 20 targets.
"loss" is the loss with its gradients alone, of 4 images of 20 targets, on what the model predicts for small
images: queries, layers, groups and classes are those of the model.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import detr_fast
from benchmarks.clocks import Call, interleaved

hf: Any = import_module("transformers")
RESNET = hf.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
RT_RESNET = hf.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])
COCO = {"num_labels": 91}


@dataclass(frozen=True)
class Model:
    """How a model is built, and the height and width of its images.

    small: those of the images whose predictions a loss alone is measured on.
    """

    build: Callable[[], nn.Module]
    size: tuple[int, int]
    small: int = 320


def of(name: str, backbone: Any = None, **options: Any) -> Callable[[], nn.Module]:
    """Builds `<name>ForObjectDetection` of its default configuration."""
    config = {"backbone_config": backbone} if backbone is not None else {}
    make = getattr(hf, f"{name}Config")
    return lambda: getattr(hf, f"{name}ForObjectDetection")(make(**config, **options))


def masks_of(name: str, kind: str) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, f"{name}For{kind}")(getattr(hf, f"{name}Config")())


LW_DETR = hf.LwDetrViTConfig(hidden_size=192, num_hidden_layers=6, out_indices=[2, 4, 5])
RF_DETR = hf.RfDetrDinov2Config(out_indices=[2, 5, 8, 11])
LAYERS = {"auxiliary_loss": True}
MODELS: dict[str, Model] = {
    "detr": Model(of("Detr", RESNET, **LAYERS, **COCO), (800, 1066)),
    "conditional_detr": Model(of("ConditionalDetr", RESNET, **LAYERS, **COCO), (800, 1066)),
    "deformable_detr": Model(of("DeformableDetr", RESNET, **LAYERS, **COCO), (800, 1066)),
    "rt_detr": Model(of("RTDetr", RT_RESNET), (640, 640)),
    "rt_detr_v2": Model(of("RTDetrV2", RT_RESNET), (640, 640)),
    "d_fine": Model(of("DFine"), (640, 640)),
    "deimv2": Model(of("Deimv2"), (640, 640)),
    "lw_detr": Model(of("LwDetr", LW_DETR, projector_scale_factors=[1.0], **COCO), (640, 640), 384),
    "rf_detr": Model(of("RfDetr", RF_DETR, **COCO), (560, 560), 336),
    "grounding_dino": Model(of("GroundingDino", **LAYERS), (800, 1066)),
    "mm_grounding_dino": Model(of("MMGroundingDino", **LAYERS), (800, 1066)),
    "maskformer": Model(masks_of("MaskFormer", "InstanceSegmentation"), (512, 512)),
    "mask2former": Model(masks_of("Mask2Former", "UniversalSegmentation"), (800, 1088)),
}
PROMPT = [101, 5, 1012, 6, 7, 1012, 102]  # two phrases


def inputs(name: str, model: Any, images: int, height: int, width: int, targets: int) -> dict[str, Any]:
    """Random images and, for `targets` > 0, so many boxes or masks an image."""
    given: dict[str, Any] = {"pixel_values": torch.randn(images, 3, height, width)}
    grounded = name.endswith("grounding_dino")
    if grounded:
        tokens = torch.tensor([PROMPT] * images)
        given |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        given["token_type_ids"] = torch.zeros_like(tokens)
    if not targets:
        return given
    labels = torch.randint(0, 2 if grounded else model.config.num_labels, (images, targets))
    if "mask" in name:
        blobs = (torch.rand(images, targets, height // 32, width // 32) < 0.5).float()
        given["mask_labels"] = list(nn.functional.interpolate(blobs, (height, width)))
        given["class_labels"] = list(labels)
    else:
        boxes = torch.rand(images, targets, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1
        given["labels"] = [{"class_labels": x, "boxes": y} for x, y in zip(labels, boxes, strict=True)]
    return given


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


def inference(name: str, model: Model) -> None:
    before: Any = model.build().eval()
    after, folded = copy.deepcopy(before), copy.deepcopy(before)
    report = detr_fast.accelerate(after)
    detr_fast.accelerate(folded, inference=True)
    given = inputs(name, before, 1, *model.size, targets=0)
    with torch.inference_mode():
        calls: dict[str, Call] = {
            "accelerate": lambda: after(**given),
            "accelerate with inference=True": lambda: folded(**given),
        }
        compare(f"{name} inference", lambda: before(**given), calls)
        share = inside(before, [path for path, _ in report.replaced], lambda: before(**given))
    print(f"{name} inference, share of what is replaced: {100 * share:.0f} %", flush=True)


def inside(model: nn.Module, paths: list[str], call: Call) -> float:
    """The share of a call that the modules at some paths take."""
    spent, starts, hooks = 0.0, list[float](), []

    def leave(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - starts.pop()

    modules = dict(model.named_modules())
    for module in (modules[path] for path in paths if path in modules):
        hooks.append(module.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())))
        hooks.append(module.register_forward_hook(leave))
    start = time.perf_counter()
    call()
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return spent / whole


def step(name: str, model: Model) -> None:
    before: Any = model.build().train()
    after = copy.deepcopy(before)
    detr_fast.accelerate(after)
    given = inputs(name, before, 1, *model.size, targets=20)

    def train(side: Any) -> None:
        side.zero_grad()
        torch.manual_seed(0)
        side(**given).loss.backward()

    compare(f"{name} training step", lambda: train(before), {"accelerate": lambda: train(after)})


class _Asked(Exception):
    """Carries the arguments of a loss out of a model."""


def loss(name: str, model: Model) -> None:
    network: Any = model.build().train()
    given = inputs(name, network, 4, model.small, model.small, targets=20)
    original, arguments = asked(network, given)
    leaves = [x for x in tensors(arguments) if x.is_floating_point() and x.requires_grad]
    detr_fast.accelerate(network)
    fast = network.criterion if "mask" in name else network.loss_function

    def call(function: Any) -> None:
        torch.manual_seed(0)
        found = function(**arguments)
        total: Any = sum(found.values()) if isinstance(found, dict) else found[0]
        torch.autograd.grad(total, leaves, allow_unused=True)

    compare(f"{name} loss", lambda: call(original), {"accelerate": lambda: call(fast)})


def asked(network: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model's loss and what it is called with, predictions cut off from the model."""
    masks = "mask_labels" in given
    original = copy.deepcopy(network.criterion) if masks else network.loss_function
    names = list(inspect.signature(original.forward if masks else original).parameters)

    def ask(*args: Any, **kwargs: Any) -> None:
        raise _Asked(dict(zip(names, args, strict=False)) | kwargs)

    if masks:
        network.criterion.forward = ask
    else:
        network.loss_function = ask
    try:
        network(**given)
    except _Asked as found:
        (arguments,) = found.args
    if masks:
        del network.criterion.forward
    else:
        del network._loss_function
    return original, cut(arguments)


def cut(value: Any) -> Any:
    """Tensors that have gradients as leaves of their own."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.requires_grad else value
    if isinstance(value, dict):
        return {key: cut(x) for key, x in value.items()}
    return type(value)(map(cut, value)) if isinstance(value, (list, tuple)) else value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for part in value for x in tensors(part)] if isinstance(value, (list, tuple)) else []


KINDS = {"inference": inference, "step": step, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(MODELS))
    parser.add_argument("--only", action="append", choices=KINDS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"name: expected some of {', '.join(MODELS)}; got {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in options.names or MODELS:
        for kind in options.only or KINDS:
            KINDS[kind](name, MODELS[name])


if __name__ == "__main__":
    main()
