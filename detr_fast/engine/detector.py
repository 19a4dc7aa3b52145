"""A model with what it takes to use it: its configuration, the names of its classes and its image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detr_fast.checkpoints import load_state_dict, read_checkpoint, read_file
from detr_fast.data import CocoDetection
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.engine.coco_categories import COCO_CATEGORIES
from detr_fast.models import DETR, DETRConfig

# What a name stands for; everything else is DETRConfig's default.
MODELS: dict[str, dict[str, Any]] = {
    "detr-r18": {"backbone": "resnet18"},
    "detr-r34": {"backbone": "resnet34"},
    "detr-r50": {"backbone": "resnet50"},
    "detr-r50-dc5": {"backbone": "resnet50", "dilation": True},
    "detr-r101": {"backbone": "resnet101"},
    "detr-r101-dc5": {"backbone": "resnet101", "dilation": True},
}


@dataclass
class Detector:
    """A DETR and its surroundings.

    categories: for each label that stands for something, (category id, name).
    image_size, max_size: short side that images are resized to, and bound of the long side, pixels.
    """

    model: DETR
    categories: dict[int, tuple[int, str]]
    image_size: int = SCALES[-1]
    max_size: int = MAX_SIZE

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def description(self) -> dict[str, Any]:
        """All but the weights, as plain data for a checkpoint's "detector" entry."""
        return {
            "config": dataclasses.asdict(self.model.config),
            "categories": {label: [category, name] for label, (category, name) in self.categories.items()},
            "image_size": self.image_size,
            "max_size": self.max_size,
        }


def model_config(name: str, **sizes: Any) -> DETRConfig:
    """The configuration of a named model; `sizes` override fields of DETRConfig, None leaves them alone."""
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}; got {name!r}")
    given = {key: value for key, value in sizes.items() if value is not None}
    return DETRConfig(**{**MODELS[name], **given})


def dataset_categories(dataset: CocoDetection) -> dict[int, tuple[int, str]]:
    """The data set's labels as `Detector.categories`."""
    return {
        label: (category, dataset.category_names[label])
        for label, category in dataset.label_to_category.items()
    }


def load_detector(
    path: str | Path, *, model: str | None = None, device: torch.device | str = "cpu"
) -> Detector:
    """A detector from a checkpoint of this package's training, or from an official DETR checkpoint.

    Args:
        path: the file. An official one tells its sizes by its `args` or, without them, by its shapes.
        model: a name of `MODELS`, for an official file that tells too little (dilation has no shape).
        device: where to put it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a DETR, or of another one than `model`.
    """
    content = read_file(path)
    state = read_checkpoint(path)
    described = isinstance(content, Mapping) and "detector" in content
    try:
        if described:
            about = content["detector"]
            config = DETRConfig(**about["config"])
            if model is not None and MODELS.get(model, {}).get("backbone") != config.backbone:
                raise ValueError(f"model: the checkpoint holds a DETR with {config.backbone}; got {model!r}")
            categories = {label: (category, name) for label, (category, name) in about["categories"].items()}
            detector = Detector(DETR(config), categories, about["image_size"], about["max_size"])
        else:
            config = _official_config(content, state, model)
            names = {label: (label, name) for label, name in COCO_CATEGORIES.items()}
            if config.num_classes != max(COCO_CATEGORIES) + 1:
                names = {label: (label, f"class {label}") for label in range(config.num_classes)}
            detector = Detector(DETR(config), names)
        load_state_dict(detector.model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    detector.model.to(device).eval()
    return detector


def _official_config(content: Any, state: Mapping[str, torch.Tensor], model: str | None) -> DETRConfig:
    shapes = DETRConfig.from_state_dict(state)
    if model is not None:
        named = model_config(model)
        return dataclasses.replace(shapes, backbone=named.backbone, dilation=named.dilation)
    if "args" in content:
        return DETRConfig.from_official_args(content["args"], shapes.num_classes)
    return shapes
