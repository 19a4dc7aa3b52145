"""The model families: how each is built, trained and read, and which tasks it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import nn

from detr_fast.families import criteria, reading
from detr_fast.models import (
    DETR,
    DeformableDETR,
    DeformableDETRConfig,
    DETRConfig,
    DETRSegm,
    DETRSegmConfig,
    Mask2Former,
    Mask2FormerConfig,
    MaskFormer,
    MaskFormerConfig,
)
from detr_fast.models.deformable_detr import parameter_groups as deformable_groups

Groups: TypeAlias = list[dict[str, Any]]
Sizes: TypeAlias = Mapping[str, Mapping[str, Any]]


class OptimizerSettings(Protocol):
    """What parameter groups are made from; a `TrainConfig` is one."""

    @property
    def lr(self) -> float: ...

    @property
    def lr_backbone(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def backbone_groups(model: nn.Module, config: OptimizerSettings) -> Groups:
    """Two groups: the backbone's parameters, under `backbone.`, learn at a rate of their own."""
    named = [(name.removeprefix("detr."), p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith("backbone.")]
    others = [p for name, p in named if not name.startswith("backbone.")]
    groups = [{"params": others, "lr": config.lr}, {"params": backbone, "lr": config.lr_backbone}]
    return [group for group in groups if group["params"]]


def _own_groups(model: Any, config: OptimizerSettings) -> Groups:
    return model.parameter_groups(config.lr, config.lr_backbone, config.weight_decay)


@dataclass(frozen=True)
class Family:
    """One kind of model.

    looks_like: what `checkpoints.describe` calls its state dicts.
    model, config: its classes.
    sizes: what the named models change in the configuration; the first is the family's default.
    read: for each task that it does, how predictions become results; the first is the default task.
    criterion: its losses, from the configuration.
    masks: trains on masks.
    contiguous_labels: labels are 0, 1, ... in the order of the category ids, rather than the ids themselves.
    augmentation: of training images.
    training: where the family's training differs from the defaults of `TrainConfig`.
    parameter_groups: the optimizer's groups, from model and configuration.
    """

    looks_like: str
    model: type[nn.Module]
    config: Any
    sizes: Sizes
    read: Mapping[str, reading.Read]
    criterion: Callable[[Any], nn.Module]
    masks: bool
    contiguous_labels: bool
    augmentation: Literal["detr", "lsj"] = "detr"
    training: Mapping[str, Any] = field(default_factory=dict)
    parameter_groups: Callable[[nn.Module, OptimizerSettings], Groups] = backbone_groups

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.read)


# "tiny" ones learn from nothing on small images in minutes
TINY: dict[str, Any] = {
    "backbone": "conv_stem",
    "hidden_dim": 128,
    "enc_layers": 2,
    "dec_layers": 3,
    "dim_feedforward": 256,
    "dropout": 0.0,
    "num_queries": 20,
}
TINY_MASKS = {**TINY, "conv_dim": 64, "mask_dim": 64, "enc_dim_feedforward": 256}
DETR_SIZES: Sizes = {
    "r50": {"backbone": "resnet50"},
    "r50-dc5": {"backbone": "resnet50", "dilation": True},
    "r101": {"backbone": "resnet101"},
    "r101-dc5": {"backbone": "resnet101", "dilation": True},
    "r18": {"backbone": "resnet18"},
    "r34": {"backbone": "resnet34"},
    "tiny": TINY,
}
MASK_SIZES: Sizes = {
    "r50": {"backbone": "resnet50"},
    "r101": {"backbone": "resnet101"},
    "swin-t": {"backbone": "swin_t"},
    "swin-s": {"backbone": "swin_s"},
    "swin-b": {"backbone": "swin_b"},
    "swin-l": {"backbone": "swin_l"},
    "tiny": TINY_MASKS,
}

FAMILIES: dict[str, Family] = {
    "detr": Family(
        looks_like="a DETR",
        model=DETR,
        config=DETRConfig,
        sizes=DETR_SIZES,
        read={"detection": reading.detr_boxes},
        criterion=criteria.detr_criterion,
        masks=False,
        contiguous_labels=False,
    ),
    "detr-segm": Family(
        looks_like="a DETR for segmentation",
        model=DETRSegm,
        config=DETRSegmConfig,
        sizes=DETR_SIZES,
        read={"panoptic": reading.detr_segments, "instance": reading.detr_instances},
        criterion=criteria.detr_segm_criterion,
        masks=True,
        contiguous_labels=False,
        training={"epochs": 25, "lr_drop": 15},
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
            "tiny": {**TINY, "num_feature_levels": 3, "with_box_refine": True},
        },
        read={"detection": reading.focal_boxes},
        criterion=criteria.deformable_detr_criterion,
        masks=False,
        contiguous_labels=True,
        training={"epochs": 50, "lr": 2e-4, "lr_backbone": 2e-5, "lr_drop": 40},
        parameter_groups=lambda model, config: deformable_groups(model, config.lr, config.lr_backbone),
    ),
    "maskformer": Family(
        looks_like="a MaskFormer",
        model=MaskFormer,
        config=MaskFormerConfig,
        sizes=MASK_SIZES,
        read={
            "panoptic": reading.maskformer_segments,
            "semantic": reading.mask_labels,
            "instance": reading.mask_instances,
        },
        criterion=criteria.maskformer_criterion,
        masks=True,
        contiguous_labels=True,
        training={"clip_max_norm": 0.01},
        parameter_groups=_own_groups,
    ),
    "mask2former": Family(
        looks_like="a Mask2Former",
        model=Mask2Former,
        config=Mask2FormerConfig,
        sizes={**MASK_SIZES, "swin-l": {"backbone": "swin_l", "num_queries": 200}},
        read={
            "panoptic": reading.mask2former_segments,
            "instance": reading.mask_instances,
            "semantic": reading.mask_labels,
        },
        criterion=criteria.mask2former_criterion,
        masks=True,
        contiguous_labels=True,
        augmentation="lsj",
        training={"epochs": 50, "lr_drop": 44, "weight_decay": 0.05, "clip_max_norm": 0.01},
        parameter_groups=_own_groups,
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
