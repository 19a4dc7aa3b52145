"""The model families, one file each: variants, losses, results, training and official files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from detr_fast.families import deformable_detr, detr, detr_segm, dino, mask2former, maskformer
from detr_fast.families.family import Family
from detr_fast.models.decoder_attention import AttentionMaps, SamplingPoints, watch_attention
from detr_fast.structures import PaddedImages

# in the order in which they were published: where a state dict fits several, the last of them wrote it
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        detr.FAMILY,
        detr_segm.FAMILY,
        deformable_detr.FAMILY,
        maskformer.FAMILY,
        mask2former.FAMILY,
        dino.FAMILY,
    )
}

# every name of a model: its family and what it changes in the configuration
MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    name: (family.name, fields)
    for family in FAMILIES.values()
    for name, fields in [
        (family.name, next(iter(family.variants.values()))),
        *((f"{family.name}-{variant}", fields) for variant, fields in family.variants.items()),
    ]
}


def family_of(model: str) -> str:
    """The family of a model's name."""
    if model not in MODELS:
        near = get_close_matches(str(model), MODELS, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"model: expected one of {', '.join(MODELS)}; got {model!r}{hint}")
    return MODELS[model][0]


def family_in(names: Iterable[str]) -> str | None:
    """The family whose official code wrote a state dict with these names; None for any other."""
    names = list(names)
    return next((family.name for family in reversed(FAMILIES.values()) if family.wrote(names)), None)


def model_config(model: str, **fields: Any) -> Any:
    """The configuration of a named model; `fields` override its own, None leaves them alone."""
    family = family_of(model)
    given = {key: value for key, value in fields.items() if value is not None}
    return FAMILIES[family].config(**{**MODELS[model][1], **given})


def check_task(family: str, task: str | None) -> str:
    """The task, by default the family's first; ValueError for one that the family cannot do."""
    known = FAMILIES[family].tasks
    if task is None:
        return known[0]
    if task not in known:
        raise ValueError(f"task: {family} does {' or '.join(known)}; got {task!r}")
    return task


def decoder_attention(model: nn.Module, images: PaddedImages) -> AttentionMaps | SamplingPoints:
    """The attention of the last decoder layer from queries to the images.

    Args:
        model: of one of the families; it runs in evaluation mode and is left in the mode it was in.
        images: on the model's device.

    Raises:
        TypeError: the model is of no family.
    """
    for family in FAMILIES.values():
        if isinstance(model, family.model):
            return watch_attention(model, images, family.attention(model))
    expected = " or ".join(family.model.__name__ for family in FAMILIES.values())
    raise TypeError(f"model: expected {expected}; got {type(model).__name__}")


__all__ = [
    "FAMILIES",
    "MODELS",
    "Family",
    "check_task",
    "decoder_attention",
    "family_in",
    "family_of",
    "model_config",
]
