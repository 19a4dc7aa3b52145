"""The model families: how each is built, trained and read, and which tasks it does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from detr_fast.criterion import FocalSetCriterion, SetCriterion, detection_weights, focal_weights
from detr_fast.engine.config import TrainConfig
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DeformableDETR, DeformableDETRConfig, DETRConfig
from detr_fast.models.deformable_detr import parameter_groups as deformable_groups
from detr_fast.postprocess import postprocess_detection, postprocess_focal
from detr_fast.structures import PaddedImages

Size: TypeAlias = tuple[int, int]
Result: TypeAlias = dict[str, Any]
Groups: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Geometry:
    """The sizes, (height, width) in pixels, that reading a batch of predictions takes.

    padded: of the batch. images: of each image in it. outputs: of each image's results.
    """

    padded: Size
    images: list[Size]
    outputs: list[Size]

    @classmethod
    def of_batch(cls, images: PaddedImages, targets: Sequence[Mapping[str, Tensor]]) -> Geometry:
        """Of a batch as the loader makes it; results come at the images' original sizes."""
        height, width = images.tensors.shape[2:]
        shown, original = (
            [(int(h), int(w)) for h, w in (target[key].tolist() for target in targets)]
            for key in ("size", "orig_size")
        )
        return cls((height, width), shown, original)

    def target_sizes(self, device: torch.device) -> Tensor:
        """`outputs` as [B, 2]."""
        return torch.tensor(self.outputs, device=device)


@dataclass(frozen=True)
class Reading:
    """How predictions become results.

    things: labels that come in instances; None where all do.
    threshold: lowest class score of a panoptic segment; None is the family's own.
    """

    things: Collection[int] | None = None
    threshold: float | None = None


Read: TypeAlias = Callable[[Any, Geometry, Reading], list[Result]]


def backbone_groups(model: nn.Module, config: TrainConfig) -> Groups:
    """Two groups: the backbone's parameters, under `backbone.`, learn at a rate of their own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith("backbone.")]
    others = [p for name, p in named if not name.startswith("backbone.")]
    groups = [{"params": others, "lr": config.lr}, {"params": backbone, "lr": config.lr_backbone}]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class Family:
    """One kind of model.

    looks_like: what `checkpoints.describe` calls its state dicts.
    model, config: its classes.
    sizes: what the named models change in the configuration; the first is the family's default.
    read: for each task that it does, how predictions become results; the first is the default task.
    criterion: its losses, from the configuration.
    masks: trains on masks.
    contiguous: labels are 0, 1, ... in the order of the category ids, rather than the ids themselves.
    augmentation: of training images.
    training: where the family's training differs from TrainConfig's defaults.
    parameter_groups: the optimizer's groups, from model and configuration.
    """

    looks_like: str
    model: type[nn.Module]
    config: Any
    sizes: Mapping[str, Mapping[str, Any]]
    read: Mapping[str, Read]
    criterion: Callable[[Any], nn.Module]
    masks: bool
    contiguous: bool
    augmentation: Literal["detr", "lsj"] = "detr"
    training: Mapping[str, Any] = field(default_factory=dict)
    parameter_groups: Callable[[nn.Module, TrainConfig], Groups] = backbone_groups

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.read)


def detr_criterion(config: DETRConfig, eos_coef: float = 0.1) -> SetCriterion:
    """DETR's matcher and losses with the official weights; `eos_coef` is that of "no object"."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    return SetCriterion(config.num_classes, matcher, detection_weights(config.dec_layers), eos_coef)


def deformable_criterion(config: DeformableDETRConfig) -> FocalSetCriterion:
    """Deformable DETR's matcher and losses with the official weights."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, class_cost="focal")
    weights = focal_weights(config.dec_layers, two_stage=config.two_stage)
    return FocalSetCriterion(config.num_classes, matcher, weights)


def _read_detr(predictions: Any, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_detection(predictions, geometry.target_sizes(predictions.logits.device))


def _read_deformable(predictions: Any, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_focal(predictions, geometry.target_sizes(predictions.logits.device))


RESNETS = {"r50": "resnet50", "r18": "resnet18", "r34": "resnet34", "r101": "resnet101"}
# models that learn from nothing on small images in minutes
TINY = {
    "backbone": "conv_stem",
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "dec_layers": 3,
    "num_queries": 20,
    "dropout": 0.0,
}

FAMILIES: dict[str, Family] = {
    "detr": Family(
        looks_like="a DETR",
        model=DETR,
        config=DETRConfig,
        sizes={
            **{name: {"backbone": backbone} for name, backbone in RESNETS.items()},
            "r50-dc5": {"backbone": "resnet50", "dilation": True},
            "r101-dc5": {"backbone": "resnet101", "dilation": True},
            "tiny": {**TINY, "enc_layers": 2},
        },
        read={"detection": _read_detr},
        criterion=detr_criterion,
        masks=False,
        contiguous=False,
    ),
    "deformable-detr": Family(
        looks_like="a Deformable DETR",
        model=DeformableDETR,
        config=DeformableDETRConfig,
        sizes={
            "r50": {},
            "r50-single-scale": {"num_feature_levels": 1},
            "r50-dc5-single-scale": {"num_feature_levels": 1, "dilation": True},
            "r50-refine": {"with_box_refine": True},
            "r50-two-stage": {"with_box_refine": True, "two_stage": True},
            "r101-refine": {"backbone": "resnet101", "with_box_refine": True},
            "tiny": {**TINY, "enc_layers": 2, "num_feature_levels": 3, "with_box_refine": True},
        },
        read={"detection": _read_deformable},
        criterion=deformable_criterion,
        masks=False,
        contiguous=True,
        training={"epochs": 50, "lr": 2e-4, "lr_backbone": 2e-5, "lr_drop": 40},
        parameter_groups=lambda model, config: deformable_groups(model, config.lr, config.lr_backbone),
    ),
}

# every name of a model: its family and what it changes in the configuration
MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    name: (family, fields)
    for family, about in FAMILIES.items()
    for name, fields in [
        (family, next(iter(about.sizes.values()))),
        *((f"{family}-{size}", fields) for size, fields in about.sizes.items()),
    ]
}


def family_of(model: str) -> str:
    """The family of a model's name."""
    if model not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}; got {model!r}")
    return MODELS[model][0]


def model_config(model: str, **sizes: Any) -> Any:
    """The configuration of a named model; `sizes` override its fields, None leaves them alone."""
    family = family_of(model)
    given = {key: value for key, value in sizes.items() if value is not None}
    return FAMILIES[family].config(**{**MODELS[model][1], **given})


def check_task(family: str, task: str | None) -> str:
    """The task, by default the family's first; ValueError for one that the family cannot do."""
    known = FAMILIES[family].tasks
    if task is None:
        return known[0]
    if task not in known:
        raise ValueError(f"task: {family} does {' or '.join(known)}; got {task!r}")
    return task


def train_config(family: str, **given: Any) -> TrainConfig:
    """The family's training settings; `given` ones override them, None leaves them alone."""
    chosen = {key: value for key, value in given.items() if value is not None}
    return TrainConfig(**{**FAMILIES[family].training, **chosen})
