"""Loading state dicts into models, official ones included, with nothing silently left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from detr_fast.checkpoints.detrex import from_detrex, is_detrex
from detr_fast.checkpoints.kinds import describe

logger = logging.getLogger(__name__)

# buffers of losses, of Swin windows and of batch norms that count, which some state dicts carry along
IGNORED = re.compile(r"^criterion\.|\.(relative_position_index|attn_mask|num_batches_tracked)$")
# a row for each class; "no object" is the last one where the head is shared by all layers
CLASS_HEAD = re.compile(r"(^|\.)((enc_out_)?class_embed(\.\d+)?\.(weight|bias)|label_enc\.weight)$")
NO_OBJECT = re.compile(r"(^|\.)class_embed\.(weight|bias)$")
# a row for each query
QUERIES = re.compile(r"(^|\.)(query_embed|query_feat|tgt_embed)\.weight$")

# what the official code renamed
RENAMED = (
    (re.compile(r"^sem_seg_head\.predictor\.static_query\."), "sem_seg_head.predictor.query_feat."),
    (re.compile(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)"), "sem_seg_head.pixel_decoder."),
)


@dataclass(frozen=True)
class LoadReport:
    """What loading a state dict did beyond copying every entry.

    resized: class heads and queries of another count, of which the first rows were taken.
    ignored: entries that belong to no model, such as a criterion's class weights.
    missing: parameters that the state dict lacks, unexpected: entries that the model lacks (`strict=False`).
    """

    resized: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same entries under today's official names, where files of older code or of detrex have others."""
    if is_detrex(state):
        return from_detrex(state)
    renamed = {}
    for name, tensor in state.items():
        for old, new in RENAMED:
            name = old.sub(new, name)
        renamed[name] = tensor
    return renamed


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> LoadReport:
    """Loads `state` into `model` and says what was special; older official names count as today's.

    Of a class head of another class count, and of queries of another number, the first rows are taken, and
    "no object" stays the last one; further rows keep their fresh values. So a trained model can be fine-tuned
    on other classes. Any other difference raises ValueError, naming what the state dict looks like;
    `strict=False` loads what fits.
    """
    own = model.state_dict(keep_vars=True)
    state = official_names(state)
    ignored = {name for name in state if IGNORED.search(name) and name not in own}
    given = {name: tensor for name, tensor in state.items() if name not in ignored}
    different = {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    resized = {
        name
        for name in different
        if (CLASS_HEAD.search(name) or QUERIES.search(name)) and own[name].shape[1:] == given[name].shape[1:]
    }
    _check_kinds(own, given)
    # some files store a tensor that modules share under one of its names only
    loaded = {id(own[name]) for name in own.keys() & given.keys()}
    missing = sorted(name for name in own.keys() - given.keys() if id(own[name]) not in loaded)
    unexpected = sorted(given.keys() - own.keys())
    if strict and (missing or unexpected or different - resized):
        raise ValueError(_explain(model, own, given, missing, unexpected, sorted(different - resized)))
    rows = {name: _first_rows(own[name], given[name], name) for name in resized}
    model.load_state_dict({**{n: t for n, t in given.items() if n not in different}, **rows}, strict=False)
    for name in sorted(resized):
        logger.info("%s: %d rows in the state dict, %d in the model", name, len(given[name]), len(own[name]))
    others = different - resized
    return LoadReport(
        resized=tuple(sorted(resized)),
        ignored=tuple(sorted(ignored)),
        missing=tuple(sorted({*missing, *others})),
        unexpected=tuple(sorted({*unexpected, *others})),
    )


def _first_rows(own: Tensor, given: Tensor, name: str) -> Tensor:
    """`own` with as many of the first rows of `given` as it takes; "no object" goes to its last row."""
    rows = own.detach().clone()
    given = given.to(rows.device, rows.dtype)
    last = 1 if NO_OBJECT.search(name) and len(rows) and len(given) else 0
    count = min(len(rows), len(given)) - last
    rows[:count] = given[:count]
    rows[len(rows) - last :] = given[len(given) - last :]
    return rows


def _check_kinds(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copying would round quantised or complex numbers to something else without a word."""
    for name in own.keys() & given.keys():
        kinds = [(t.is_floating_point(), t.is_complex()) for t in (own[name], given[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"state: {name}: expected {own[name].dtype}; got {given[name].dtype}")


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
