"""Loading state dicts into models, official ones included, with nothing silently left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from detr_fast.checkpoints.kinds import describe

logger = logging.getLogger(__name__)

# buffers of official losses, and of Swin windows, which some official state dicts carry along
IGNORED = re.compile(r"^criterion\.|\.(relative_position_index|attn_mask)$")
CLASS_HEAD = re.compile(r"(^|\.)class_embed(\.\d+)?\.(weight|bias)$")

# what the official code renamed
RENAMED = (
    (re.compile(r"^sem_seg_head\.predictor\.static_query\."), "sem_seg_head.predictor.query_feat."),
    (re.compile(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)"), "sem_seg_head.pixel_decoder."),
)


@dataclass(frozen=True)
class LoadReport:
    """What loading a state dict did beyond copying every entry.

    reinitialized: class-head parameters that keep their fresh values, because the class counts differ.
    ignored: entries that belong to no model, such as a criterion's class weights.
    missing: parameters that the state dict lacks, unexpected: entries that the model lacks (`strict=False`).
    """

    reinitialized: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same entries under today's official names, where files of older official code have others."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in RENAMED:
            name = old.sub(new, name)
        renamed[name] = tensor
    return renamed


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> LoadReport:
    """Loads `state` into `model` and says what was special; older official names count as today's.

    A class head of another class count keeps its fresh values, with a warning, so that a trained model can be
    fine-tuned on other classes. Any other difference raises ValueError, naming what the state dict looks
    like; `strict=False` loads what fits.
    """
    own = model.state_dict(keep_vars=True)
    state = official_names(state)
    ignored = {name for name in state if IGNORED.search(name) and name not in own}
    given = {name: tensor for name, tensor in state.items() if name not in ignored}
    different = {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    heads = {
        name for name in different if CLASS_HEAD.search(name) and own[name].shape[1:] == given[name].shape[1:]
    }
    # some files store a tensor that modules share under one of its names only
    loaded = {id(own[name]) for name in own.keys() & given.keys()}
    missing = sorted(name for name in own.keys() - given.keys() if id(own[name]) not in loaded)
    unexpected = sorted(given.keys() - own.keys())
    if strict and (missing or unexpected or different - heads):
        raise ValueError(_explain(model, own, given, missing, unexpected, sorted(different - heads)))
    model.load_state_dict({n: t for n, t in given.items() if n not in different}, strict=False)
    if heads:
        name = min(heads)
        logger.warning(
            "class head re-initialised: the checkpoint has %d rows, the model %d (%s)",
            given[name].shape[0],
            own[name].shape[0],
            ", ".join(sorted(heads)),
        )
    others = different - heads
    return LoadReport(
        reinitialized=tuple(sorted(heads)),
        ignored=tuple(sorted(ignored)),
        missing=tuple(sorted({*missing, *others})),
        unexpected=tuple(sorted({*unexpected, *others})),
    )


def _explain(
    model: nn.Module,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    different: list[str],
) -> str:
    shapes = [f"{n} {list(given[n].shape)}, expected {list(own[n].shape)}" for n in different]
    differences = (
        f"{what}: {'; '.join(names[:3])}" + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    )
    return (
        f"state: expected the entries of this {type(model).__name__}; got what looks like {describe(given)}. "
        + ". ".join(differences)
    )
