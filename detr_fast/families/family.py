"""What a family of models is, and what several families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from detr_fast.families.results import Decode, FindDetections
from detr_fast.models.common import ModelConfig, official_options
from detr_fast.models.decoder_attention import AttentionSource

Groups: TypeAlias = list[dict[str, Any]]
Variants: TypeAlias = Mapping[str, Mapping[str, Any]]

# fields that tensor shapes cannot determine
SHAPELESS = ("backbone", "dilation")

# "tiny" variants learn from nothing on photographs in minutes
TINY: dict[str, Any] = {
    "backbone": "conv_stem",
    "hidden_dim": 128,
    "enc_layers": 2,
    "dec_layers": 3,
    "dim_feedforward": 256,
    "dropout": 0.0,
    "num_queries": 50,
}
# what suits models on the convolutional stem, which start from nothing: short side of images, and training
SMALL_IMAGE_SIZE = 256
SMALL_TRAINING: dict[str, Any] = {"lr": 5e-4, "lr_backbone": 5e-4, "clip_max_norm": 1.0, "warmup_steps": 50}
# "demo" variants do on drawings of 64 pixels
DEMO: dict[str, Any] = {**TINY, "backbone": "conv_stem_8", "num_queries": 10}


class OptimizerSettings(Protocol):
    """What parameter groups are made from; a `TrainConfig` is one."""

    @property
    def lr(self) -> float: ...

    @property
    def lr_backbone(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def backbone_groups(model: nn.Module, settings: OptimizerSettings, prefix: str = "backbone.") -> Groups:
    """Two groups: the backbone's parameters, whose names begin with `prefix`, at a rate of their own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith(prefix)]
    others = [p for name, p in named if not name.startswith(prefix)]
    groups = [{"params": others, "lr": settings.lr}, {"params": backbone, "lr": settings.lr_backbone}]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class Frozen:
    """How a family takes up the trained model of another one, which stays as it is.

    Args:
        family: the other family's name.
        around: from the trained model to one around it, whose other weights are fresh.
    """

    family: str
    around: Callable[[Any], nn.Module]


@dataclass(frozen=True)
class Family:
    """One kind of model: everything about it that is not its network.

    Args:
        name: on the command line and in checkpoints.
        model, config: its classes; `config.from_state_dict` reads the configuration off official tensors.
        signature: matches a name in each official state dict of this family, in none of those before it.
        variants: the fields that each named variant changes in the configuration; the first is the default.
        criterion: the losses with the official weights, from the configuration.
        decode: for each task of the family, how predictions become results; the first is the default task.
        detections: how boxes are found, of a family that detects; `decode` has it too.
        attention: where the last decoder layer's attention is, in a model.
        masks: whether it trains on masks.
        contiguous_labels: whether labels are 0, 1, ... in the order of the category ids, not the ids.
        augmentation: of training images.
        training: where the family's training differs from the defaults of `TrainConfig`.
        parameter_groups: the optimizer's groups, from model and settings.
        frozen: the family whose trained models this one can be trained around.
    """

    name: str
    model: type[nn.Module]
    config: type[ModelConfig]
    signature: re.Pattern[str]
    variants: Variants
    criterion: Callable[[Any], nn.Module]
    decode: Mapping[str, Decode]
    attention: Callable[[Any], AttentionSource]
    masks: bool
    contiguous_labels: bool
    augmentation: Literal["detr", "lsj"] = "detr"
    training: Mapping[str, Any] = field(default_factory=dict)
    parameter_groups: Callable[[nn.Module, OptimizerSettings], Groups] = backbone_groups
    frozen: Frozen | None = None
    detections: FindDetections | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, the default first."""
        return tuple(self.decode)

    def wrote(self, names: Iterable[str]) -> bool:
        """Whether a state dict with these names fits this family; it may fit a later one as well."""
        return any(self.signature.search(name) for name in names)

    def official_config(
        self, state: Mapping[str, Tensor], args: Any = None, variant: str | None = None
    ) -> Any:
        """The configuration of an official state dict.

        Args:
            state: with the official names.
            args: the options that the file was trained with, where it holds them. They count for what
                tensor shapes do not tell.
            variant: a name of `variants` that tells what tensor shapes cannot; it goes before `args`.
        """
        told = {} if args is None else official_options(self.config, args)
        told.pop("backbone", None)
        if variant is not None:
            named = self.config(**self.variants[variant])
            told.update({name: getattr(named, name) for name in SHAPELESS if hasattr(named, name)})
        config = self.config.from_state_dict(state)
        determined = self.config.sizes_in(state, told).keys() - SHAPELESS
        told = {name: value for name, value in told.items() if name not in determined}
        return self.config.from_state_dict(state, **told) if told else config
