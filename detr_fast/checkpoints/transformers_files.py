"""Folders of Hugging Face transformers: `config.json` beside weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from detr_fast.checkpoints.transformers_config import (
    MODEL_TYPES,
    family_of_config,
    image_sizes,
    labels_of,
    options_of,
)
from detr_fast.checkpoints.transformers_names import from_transformers

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
OURS = "detr_fast"  # entry of the configuration with what transformers does not know
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    state: the weights under the official names.
    options: the official options that its configuration states.
    labels: names of labels; None where it does not tell them.
    about: what this package wrote into the configuration, and image sizes.
    remarks: a line for each thing that a person should know.
    """

    state: dict[str, Tensor]
    options: dict[str, Any]
    labels: dict[int, str] | None
    about: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def is_transformers(path: Path) -> bool:
    """Whether a path means such a folder: itself, or a weights file beside its configuration."""
    if path.is_dir():
        return True
    config = path.with_name(CONFIG)
    if (
        not (path.name in WEIGHTS or path.suffix == ".safetensors")
        or not path.is_file()
        or not config.is_file()
    ):
        return False
    try:
        return _read_json(config).get("model_type") in MODEL_TYPES
    except ValueError:
        return False


def read_folder(path: Path, read: Read) -> Folder:
    """A folder's model, or the one of a weights file in it.

    Args:
        path: the folder, or the file.
        read: reads a weights file safely.

    Raises:
        FileNotFoundError: the configuration, the weights or one of their files is missing.
        ValueError: a file of it is damaged, or the model is none of this package's.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder}: expected a checkpoint file, or a folder of transformers; it has no {CONFIG}"
        )
    config = _read_json(folder / CONFIG)
    try:
        family = family_of_config(config)
        options, labels = options_of(family, config), labels_of(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    weights = folder / next((name for name in WEIGHTS if (folder / name).is_file()), WEIGHTS[0])
    if not path.is_dir():
        weights = path
    if not weights.is_file():
        raise FileNotFoundError(f"{folder}: expected weights in one of {', '.join(WEIGHTS)}; none is there")
    state = _read_shards(weights, read) if weights.suffix == ".json" else read(weights)
    try:
        state = _completed(family, from_transformers(family, state), options)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{weights}: expected the weights of a {config['model_type']}; {error}") from error
    processor = _read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    known = config.get(OURS)
    about = {**(known if isinstance(known, dict) else {}), **image_sizes(processor)}
    return Folder(state, options, labels, about, tuple(_remarks(processor)))


def _remarks(processor: dict[str, Any]) -> list[str]:
    return [
        f"{PROCESSOR}: {name} is {processor[name]}; ImageNet's {usual} is used"
        for name, usual in IMAGENET.items()
        if processor.get(name, usual) != usual
    ]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object; got a {type(content).__name__}")
    return content


def _read_shards(index: Path, read: Read) -> dict[str, Tensor]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: expected a weight_map from names to files")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: expected files of its folder; got {name!r}")
        if not index.with_name(name).is_file():
            raise FileNotFoundError(f"{index.with_name(name)}: missing, though {index.name} names it")
        state |= read(index.with_name(name))
    if missing := sorted(places.keys() - state.keys()):
        raise ValueError(
            f"{index}: {len(missing)} entries are in none of its files, the first {missing[0]!r}"
        )
    return state


def _completed(family: str, state: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """Deformable DETR's heads under both of their names; transformers stores those that are shared once."""
    if family != "deformable-detr":
        return state
    decoder = "transformer.decoder."
    kept = dict(state)
    for head, owned in (("bbox_embed.", "with_box_refine"), ("class_embed.", "two_stage")):
        for name, tensor in state.items():
            if name.startswith(decoder + head):
                kept.setdefault(name.removeprefix(decoder), tensor)
                if not options.get(owned):
                    del kept[name]
            elif name.startswith(head) and options.get(owned):
                kept.setdefault(decoder + name, tensor)
    return kept
