"""What the networks of several families share: configurations, their checks, input and heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import describe
from detr_fast.models.backbones import TIMM
from detr_fast.models.resnet import ARCHITECTURES
from detr_fast.structures import PaddedImages

Config = TypeVar("Config", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model, most of which the shapes of its weights determine."""

    model: ClassVar[str]
    """What errors call the model, such as "DETR"."""

    @classmethod
    def from_state_dict(cls: type[Config], state: Mapping[str, Tensor], **overrides: Any) -> Config:
        """From the shapes of an official state dict, whose backbone is a ResNet or a Swin.

        Args:
            state: with the official names.
            overrides: the fields that shapes cannot determine, where they differ from the defaults.

        Raises:
            ValueError: it is another model's state dict, or a field is out of range.
        """
        try:
            sizes = cls.sizes_in(state, overrides)
        except (KeyError, StopIteration) as error:
            raise ValueError(
                f"state: expected a {cls.model} on a ResNet or Swin with the official names; "
                f"got {describe(state)}"
            ) from error
        return cls(**{**sizes, **overrides})

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the shapes of an official state dict determine; KeyError where it is no such."""
        raise NotImplementedError


def official_options(config: type[ModelConfig], args: Any) -> dict[str, Any]:
    """Those of the `args` (a namespace or mapping) of an official checkpoint that are fields of `config`.

    The official code tells a frozen detector by the file that it is from.
    """
    values = dict(args) if isinstance(args, Mapping) else dict(vars(args))
    values.setdefault("frozen_detector", values.get("frozen_weights") is not None)
    names = {field.name for field in fields(config)}
    return {name: value for name, value in values.items() if name in names}


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


def pixels_and_mask(
    images: PaddedImages | Tensor | Sequence[Tensor], multiple: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Pixels [B, 3, H, W] and the padding mask [B, H, W], or None where nothing is padded.

    A list of images is padded to a `multiple`.
    """
    if not isinstance(images, PaddedImages | Tensor):
        images = PaddedImages.from_list(images, multiple=multiple)
    pixels, mask = (images, None) if isinstance(images, Tensor) else (images.tensors, images.mask)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
        raise ValueError(f"images: expected [B, 3, H, W]; got {list(pixels.shape)}")
    if not pixels.is_floating_point():
        raise TypeError(f"images: expected normalised floating-point pixels; got {pixels.dtype}")
    return pixels, mask


def in_inference() -> bool:
    """Whether no gradient is wanted; never while a graph is recorded, which must not depend on that."""
    recording = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not (torch.is_grad_enabled() or recording)


def no_padding(x: Tensor) -> Tensor:
    """The padding mask of a map [B, C, h, w] whose positions all count: [1, h, w]."""
    return x.new_zeros((1, *x.shape[-2:]), dtype=torch.bool)


def check_dimensions(
    config: Any,
    choices: Mapping[str, Iterable[str]],
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
) -> None:
    """ValueError where a field that detectors share, or one of those named, is out of range."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known and not (name == "backbone" and str(value).startswith(TIMM)):
            raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
    shared = ("hidden_dim", "nheads", "dim_feedforward", "num_queries", "num_classes")
    for names, least in (((*shared, *positive), 1), (not_negative, 0)):
        for name in names:
            value = getattr(config, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer >= {least}; got {value!r}")
    check_multiple(config, "hidden_dim", "nheads")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout: expected 0 <= dropout < 1; got {config.dropout!r}")
    if getattr(config, "dilation", False) and not (
        config.backbone in ARCHITECTURES and ARCHITECTURES[config.backbone].bottleneck
    ):
        raise ValueError(f"dilation: expected a backbone with bottlenecks; got {config.backbone}")


def check_multiple(config: Any, name: str, factor: int | str, purpose: str = "", least: int = 1) -> None:
    """ValueError where a field is no multiple of a number or another field, at least `least` times it."""
    value = getattr(config, name)
    known = factor if isinstance(factor, int) else getattr(config, factor)
    if value % known or value < least * known:
        expected = f"{known}" if factor == known else f"{factor} = {known}"
        at_least = f", at least {least * known}," if least > 1 else ""
        raise ValueError(f"{name}: expected a multiple of {expected}{at_least}{purpose}; got {value}")
