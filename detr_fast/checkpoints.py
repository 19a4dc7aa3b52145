"""Reading checkpoints safely and loading them into models, official ones included."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# buffers of official losses, and of Swin windows, which some official state dicts carry along
IGNORED = re.compile(r"^criterion\.|\.(relative_position_index|attn_mask)$")
CLASS_HEAD = re.compile(r"(^|\.)class_embed(\.\d+)?\.(weight|bias)$")

# telling key patterns, most particular first
KNOWN = (
    ("a Mask2Former", r"^sem_seg_head\.predictor\.(query_feat|static_query)"),
    ("a MaskFormer", r"^sem_seg_head\.predictor\."),
    ("a Deformable DETR", r"^transformer\.level_embed$"),
    ("a DETR for segmentation", r"^detr\.|^mask_head\."),
    ("a DETR", r"^transformer\.decoder\.layers\.\d+\.multihead_attn\."),
    (
        "a Hugging Face transformers model",
        r"^(model\.)?(backbone\.conv_encoder|encoder\.layers\.0\.self_attn\.q_proj)",
    ),
    ("a torchvision ResNet classifier", r"^fc\.weight$"),
    ("a ResNet backbone", r"^layer4\.0\.conv1\.weight$"),
    ("a Swin", r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"),
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


def read_file(path: str | Path) -> Any:
    """What a .safetensors or torch file holds, on the CPU; a file that could run code is refused.

    Raises FileNotFoundError, or ValueError for one that is damaged or holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # official DETR checkpoints keep their command line, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{path}: not a checkpoint, or one in an unsupported pickle protocol") from error
        raise ValueError(
            f"{path}: refused, because unpickling it would import {found[1]}, which could run code; "
            "expected tensors and plain data only"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch meets damage with errors of a dozen kinds
        raise ValueError(f"{path}: damaged, or not a checkpoint: {error or type(error).__name__}") from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, unwrapped from `{"model": ...}`, on the CPU.

    Raises as `read_file` does, and ValueError where there is no state dict.
    """
    content = read_file(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: expected a state dict of tensors; got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state dict of tensors; {name!r} is a {type(value).__name__}"
            )
    return dict(content)


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> LoadReport:
    """Loads `state` into `model` and says what was special.

    A class head of another class count keeps its fresh values, with a warning, so that a trained model can be
    fine-tuned on other classes. Any other difference raises ValueError, naming what the state dict looks
    like; `strict=False` loads what fits.
    """
    own = model.state_dict(keep_vars=True)
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


def describe(names: Iterable[str]) -> str:
    """Which kind of model a state dict with these names belongs to."""
    names = list(names)
    for kind, pattern in KNOWN:
        if any(re.search(pattern, name) for name in names):
            return kind
    return "an unknown model"


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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path}: reading .safetensors files needs the package safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file: {error}") from error
