"""Whole models and losses of transformers before and after `detr_fast.accelerate`, in turns, in one process.

    python -m benchmarks.integrations [--only inference] [--only step] [--only loss] [--json FILE] [name ...]

Models are random and of their default size. "inference" is one image; the share is the time that, before,
the modules take which are replaced. "step" is a training step, loss and backward, of one image of 20 targets.
"loss" is the loss with its gradients alone, of 4 images of 20 targets, on what the model predicts for small
images: queries, layers, groups and classes are those of the model.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import detr_fast
from benchmarks.clocks import Call, interleaved
from detr_fast.machine import describe_machine

hf: Any = import_module("transformers")
Row = dict[str, Any]
INFERENCE, STEP, LOSS = "inference", "step", "loss"
UNIVERSAL = "UniversalSegmentation"


@dataclass(frozen=True)
class Model:
    """How a model is built, and the height and width of its images.

    small: those of the images whose predictions a loss alone is measured on. kinds: what it can do.
    masks: whether its targets are masks and classes, and its loss a module. training: options for that.
    """

    build: Callable[..., nn.Module]
    size: tuple[int, int] = (640, 640)
    small: int = 320
    kinds: Sequence[str] = (INFERENCE, STEP, LOSS)
    masks: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)


def of(name: str, task: str = "ObjectDetection", **options: Any) -> Callable[..., nn.Module]:
    """Builds `<name>For<task>` of its default configuration."""

    def build(**more: Any) -> nn.Module:
        network: nn.Module = getattr(hf, f"{name}For{task}")(getattr(hf, f"{name}Config")(**options, **more))
        return network

    return build


Options = dict[str, Any]
RESNET: Options = {"backbone_config": hf.ResNetConfig(out_features=["stage2", "stage3", "stage4"])}
RT_RESNET: Options = {"backbone_config": hf.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])}
LW_DETR: Options = {
    "backbone_config": hf.LwDetrViTConfig(hidden_size=192, num_hidden_layers=6, out_indices=[2, 4, 5])
}
RF_DETR: Options = {"backbone_config": hf.RfDetrDinov2Config(out_indices=[2, 5, 8, 11]), "num_labels": 91}
OMDET: Options = {
    "backbone_config": hf.SwinConfig(image_size=640, out_indices=[2, 3, 4]),
    "apply_layernorm_after_vision_backbone": False,
}
LAYOUT: Options = {"num_labels": 25, "class_thresholds": [0.5] * 25, "class_order": list(range(25))}
EOMT: Options = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
}  # the published small one
LAYERS: Options = {"auxiliary_loss": True}
COCO: Options = {"num_labels": 91} | LAYERS
IMAGE = (800, 1066)
MODELS: dict[str, Model] = {
    "detr": Model(of("Detr", **RESNET, **COCO), IMAGE),
    "conditional_detr": Model(of("ConditionalDetr", **RESNET, **COCO), IMAGE),
    "deformable_detr": Model(of("DeformableDetr", **RESNET, **COCO), IMAGE),
    "rt_detr": Model(of("RTDetr", **RT_RESNET)),
    "rt_detr_v2": Model(of("RTDetrV2", **RT_RESNET)),
    "d_fine": Model(of("DFine")),
    "deimv2": Model(of("Deimv2")),
    "lw_detr": Model(of("LwDetr", **LW_DETR, projector_scale_factors=[1.0], num_labels=91), small=384),
    "rf_detr": Model(of("RfDetr", **RF_DETR), (560, 560), 336),
    "rf_detr_segmentation": Model(of("RfDetr", "InstanceSegmentation", **RF_DETR), (448, 448), 336),
    "grounding_dino": Model(of("GroundingDino", **LAYERS), IMAGE),
    "mm_grounding_dino": Model(of("MMGroundingDino", **LAYERS), IMAGE),
    "omdet_turbo": Model(of("OmDetTurbo", **OMDET), kinds=(INFERENCE,)),
    "pp_doclayout_v2": Model(of("PPDocLayoutV2", **LAYOUT), (800, 800), kinds=(INFERENCE,)),
    "pp_doclayout_v3": Model(of("PPDocLayoutV3"), (800, 800), kinds=(INFERENCE,)),
    "maskformer": Model(of("MaskFormer", "InstanceSegmentation"), (512, 512), masks=True),
    "mask2former": Model(of("Mask2Former", UNIVERSAL), (800, 1088), masks=True),
    "oneformer": Model(of("OneFormer", UNIVERSAL), (800, 1088), masks=True, training={"is_training": True}),
    "eomt": Model(of("Eomt", UNIVERSAL, **EOMT), small=640, masks=True),
}
PROMPT = [101, 5, 1012, 6, 7, 1012, 102]  # two phrases
END_OF_TEXT = 49407  # of CLIP


def inputs(name: str, model: Any, images: int, height: int, width: int, targets: int) -> dict[str, Any]:
    """Random images and, for `targets` > 0, so many boxes or masks an image."""
    given: dict[str, Any] = {"pixel_values": torch.randn(images, 3, height, width)}
    grounded, config = name.endswith("grounding_dino"), model.config
    if grounded:
        tokens = torch.tensor([PROMPT] * images)
        given |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        given["token_type_ids"] = torch.zeros_like(tokens)
    elif name == "omdet_turbo":
        words = torch.tensor([[49406, word, END_OF_TEXT] for word in range(1000, 1080)] * images)
        given |= {"classes_input_ids": words, "classes_attention_mask": torch.ones_like(words)}
        given |= {"tasks_input_ids": words[:images], "tasks_attention_mask": torch.ones_like(words[:images])}
        given["classes_structure"] = torch.tensor([80] * images)
    elif name == "oneformer":
        given["task_inputs"] = torch.randint(1000, (images, config.task_seq_len)).float()
    if not targets:
        return given
    labels = torch.randint(0, 2 if grounded else config.num_labels, (images, targets))
    blobs = (torch.rand(images, targets, height // 32, width // 32) < 0.5).float()
    masks = nn.functional.interpolate(blobs, (height, width))
    if MODELS[name].masks:
        given |= {"mask_labels": list(masks), "class_labels": list(labels)}
        if name == "oneformer":
            texts = config.num_queries - config.text_encoder_n_ctx
            given["text_inputs"] = torch.randint(1000, (images, texts, config.text_encoder_context_length))
    else:
        boxes = torch.rand(images, targets, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1
        fields = zip(labels, boxes, masks, strict=True)
        given["labels"] = [{"class_labels": x, "boxes": y, "masks": z} for x, y, z in fields]
    return given


def compared(before: Call, **after: Call) -> Iterator[Row]:
    """The medians of both sides, in turns, and the gain, which is their ratio."""
    for how, call in after.items():
        first = []
        for side in (call, before):
            start = time.perf_counter()
            side()
            first.append(time.perf_counter() - start)
        found = interleaved(call, before, first)
        yield {"how": how, "before_ms": found.pop("peer_ms"), "after_ms": found.pop("ours_ms"), **found}


def inference(name: str, model: Model) -> Iterator[Row]:
    before: Any = model.build().eval()
    after, folded = copy.deepcopy(before), copy.deepcopy(before)
    report = detr_fast.accelerate(after)
    detr_fast.accelerate(folded, inference=True)
    given = inputs(name, before, 1, *model.size, targets=0)
    with torch.inference_mode():
        share = share_inside(before, [path for path, _ in report.replaced], lambda: before(**given))
        calls: dict[str, Call] = {
            "accelerate": lambda: after(**given),
            "accelerate, inference=True": lambda: folded(**given),
        }
        for row in compared(lambda: before(**given), **calls):
            yield {**row, "share": share}


def share_inside(model: nn.Module, paths: Sequence[str], call: Call) -> float:
    """The share of a call that the modules at some paths take."""
    spent, starts, hooks = 0.0, list[float](), []

    def leave(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - starts.pop()

    modules = dict(model.named_modules())
    for module in (modules[path] for path in paths if path and path in modules):
        hooks.append(module.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())))
        hooks.append(module.register_forward_hook(leave))
    start = time.perf_counter()
    call()
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return spent / whole


def step(name: str, model: Model) -> Iterator[Row]:
    before: Any = model.build(**model.training).train()
    after = copy.deepcopy(before)
    detr_fast.accelerate(after)
    given = inputs(name, before, 1, *model.size, targets=20)

    def train(side: Any) -> None:
        side.zero_grad()
        torch.manual_seed(0)
        side(**given).loss.backward()

    yield from compared(lambda: train(before), accelerate=lambda: train(after))


class _Asked(Exception):
    """Carries the arguments of a loss out of a model."""


def loss(name: str, model: Model) -> Iterator[Row]:
    network: Any = model.build(**model.training).train()
    given = inputs(name, network, 4, model.small, model.small, targets=20)
    original, arguments = asked(network, given, model.masks)
    leaves = [x for x in tree_leaves(arguments) if isinstance(x, Tensor) and x.requires_grad]
    detr_fast.accelerate(network)
    fast = network.criterion if model.masks else network.loss_function

    def call(function: Any) -> None:
        torch.manual_seed(0)
        found = function(**arguments)
        total: Any = sum(found.values()) if isinstance(found, dict) else found[0]
        torch.autograd.grad(total, leaves, allow_unused=True)

    yield from compared(lambda: call(original), accelerate=lambda: call(fast))


def asked(network: Any, given: Mapping[str, Any], masks: bool) -> tuple[Any, dict[str, Any]]:
    """A model's loss and what it is called with, predictions cut off from the model."""
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
    return original, tree_map(cut, arguments)


def cut(value: Any) -> Any:
    """A tensor that has a gradient as a leaf of its own."""
    if isinstance(value, Tensor) and value.requires_grad:
        return value.detach().clone().requires_grad_()
    return value


KINDS = {INFERENCE: inference, STEP: step, LOSS: loss}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(MODELS))
    parser.add_argument("--only", action="append", choices=KINDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine here")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"name: expected some of {', '.join(MODELS)}; got {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.names or MODELS:
        for kind in (
            kind for kind in KINDS if kind in MODELS[name].kinds and kind in (options.only or KINDS)
        ):
            torch.manual_seed(0)
            for found in KINDS[kind](name, MODELS[name]):
                row = {"model": name, "kind": kind, "threads": options.threads, **found}
                rows.append(row)
                share = f", {row['share']:.0%} in what is replaced" if "share" in row else ""
                times = f"{row['before_ms']:.0f} -> {row['after_ms']:.0f} ms, {row['ratio']:.2f}x"
                print(f"{name} {kind}, {row['how']}: {times}{share}, busy {row['busy']:.0%}", flush=True)
                if options.json:
                    content = {"rows": rows, "machine": describe_machine()}
                    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
