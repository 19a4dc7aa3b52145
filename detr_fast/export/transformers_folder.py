"""Detectors as folders that Hugging Face transformers loads: weights, configuration and preprocessing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_fast.checkpoints.safetensors_files import write_safetensors
from detr_fast.checkpoints.transformers_config import CLASSES, MODEL_TYPES, config_of
from detr_fast.checkpoints.transformers_files import CONFIG, IMAGENET, OURS, PROCESSOR
from detr_fast.checkpoints.transformers_names import to_transformers
from detr_fast.engine import Detector, load_detector
from detr_fast.export.writers import Options
from detr_fast.models import resnet, swin

STAGES = ["stage1", "stage2", "stage3", "stage4"]
MASKS = ("maskformer", "mask2former")
# what transformers' models compute whatever their configuration says
FIXED: dict[str, dict[str, Any]] = {
    "detr": {"pre_norm": False},
    "detr-segm": {"pre_norm": False, "dilation": False},
    "deformable-detr": {"dilation": False},
    "maskformer": {"pre_norm": False, "enc_layers": 0, "enforce_input_projection": False},
    "mask2former": {"enc_n_points": 4},
}


def write_folder(detector: Detector, path: Path, options: Options) -> None:
    """`config.json`, `model.safetensors` and `preprocessor_config.json`; versions 4 and 5 load them.

    Raises:
        ValueError: transformers has no such model.
        ImportError: safetensors is not installed.
    """
    config = configuration(detector)
    state = to_transformers(
        detector.family, detector.model.state_dict(), timm=bool(config.get("use_timm_backbone"))
    )
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        write_safetensors(state | _of_theirs(detector, config, state), file, path / "model.safetensors")
    for name, content in ((CONFIG, config), (PROCESSOR, _processor(detector))):
        (path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_folder(detector: Detector, path: Path) -> None:
    """Reads a folder back; ValueError where the weights are not the detector's, bit for bit."""
    again = load_detector(path, allow_non_finite=True)
    found = again.model.state_dict()
    for name, tensor in detector.model.state_dict().items():
        if not torch.equal(_bits(found[name]), _bits(tensor)):
            raise ValueError(f"{path.name}: {name} came back otherwise; the folder was not kept")
    if again.categories != detector.categories:
        raise ValueError(f"{path.name}: the classes came back otherwise; the folder was not kept")


def configuration(detector: Detector) -> dict[str, Any]:
    """What `config.json` holds; ValueError, with the reason, where transformers has no such model."""
    family, config = detector.family, dataclasses.asdict(detector.config)
    if family not in CLASSES:
        raise ValueError(f"model: transformers has no {family}; expected one of {', '.join(CLASSES)}")
    for name, value in FIXED[family].items():
        if config[name] != value:
            raise ValueError(
                f"{name}: transformers' {CLASSES[family]} has {value}; the model has {config[name]}"
            )
    count = config["num_classes"]
    names = {label: name for label, (_, name) in detector.categories.items()}
    labels = {label: names.get(label, "N/A") for label in range(count)}
    kind = next(kind for kind, known in MODEL_TYPES.items() if known == family.removesuffix("-segm"))
    return {
        "architectures": [CLASSES[family]],
        "model_type": kind,
        **config_of(family, config),
        **_backbone(detector),
        "num_labels": count,
        "id2label": {str(label): name for label, name in labels.items()},
        "label2id": {name: label for label, name in labels.items()},
        OURS: {
            "category_ids": {str(label): category for label, (category, _) in detector.categories.items()},
            "things": None if detector.things is None else sorted(detector.things),
            "task": detector.task_name,
        },
    }


def _backbone(detector: Detector) -> dict[str, Any]:
    family, config = detector.family, detector.config
    name = config.backbone
    if getattr(config, "dilation", False):  # transformers' own ResNet cannot dilate
        return {"use_timm_backbone": True, "backbone": name, "use_pretrained_backbone": False}
    if name in resnet.ARCHITECTURES:
        depths, bottleneck = resnet.ARCHITECTURES[name]
        backbone: dict[str, Any] = {
            "model_type": "resnet",
            "layer_type": "bottleneck" if bottleneck else "basic",
            "embedding_size": 64,
            "depths": list(depths),
            "hidden_sizes": [(256 if bottleneck else 64) << n for n in range(4)],
        }
    elif name in swin.ARCHITECTURES and family in MASKS:
        sizes = swin.ARCHITECTURES[name]
        backbone = {
            "model_type": "swin",
            "embed_dim": sizes.embed_dim,
            "depths": list(sizes.depths),
            "num_heads": list(sizes.num_heads),
            "window_size": sizes.window_size,
        }
    else:
        known = [*resnet.ARCHITECTURES, *(swin.ARCHITECTURES if family in MASKS else ())]
        raise ValueError(
            f"backbone: transformers' {CLASSES[family]} takes one of {', '.join(known)}; the model has {name}"
        )
    levels = config.num_feature_levels if family == "deformable-detr" else None
    backbone["out_features"] = STAGES if levels is None else STAGES[3:] if levels == 1 else STAGES[1:]
    return {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": backbone,
    }


def _of_theirs(detector: Detector, config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers and unused norms of transformers' mask classifiers that ours do not have."""
    if detector.family not in MASKS:
        return {}
    weights = torch.ones(config["num_labels"] + 1)
    weights[-1] = 0.1
    theirs = {"criterion.empty_weight": weights}
    for name in state:
        if name.endswith(".running_mean"):
            theirs[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    encoder = "model.pixel_level_module.encoder."
    if config["backbone_config"]["model_type"] == "swin":
        nested = f"{encoder}{'model' if detector.family == 'maskformer' else 'swin'}."
        channels = config["backbone_config"]["embed_dim"] * 8
        theirs[f"{nested}layernorm.weight"] = torch.ones(channels)
        theirs[f"{nested}layernorm.bias"] = torch.zeros(channels)
    if detector.family == "maskformer":
        for name, module in detector.model.named_modules():
            if isinstance(module, swin.WindowAttention):
                place = name.replace("backbone.", f"{encoder}model.encoder.").replace(
                    ".attn", ".attention.self"
                )
                side = module.window**2
                index = module.relative_position_index.reshape(side, side)
                theirs[f"{place}.relative_position_index"] = index
    return theirs


def _processor(detector: Detector) -> dict[str, Any]:
    """Resizing and normalising as this package does it."""
    kinds = {"detr": "Detr", "detr-segm": "Detr", "deformable-detr": "DeformableDetr"}
    kinds |= {"maskformer": "MaskFormer", "mask2former": "Mask2Former"}
    processor: dict[str, Any] = {
        "image_processor_type": f"{kinds[detector.family]}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": detector.image_size, "longest_edge": detector.max_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **IMAGENET,
        "do_pad": True,
    }
    if detector.family in MASKS:
        processor |= {"size_divisor": 32, "ignore_index": 255, "do_reduce_labels": False}
    else:
        processor |= {"format": "coco_panoptic" if detector.task_name == "panoptic" else "coco_detection"}
    return processor


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
