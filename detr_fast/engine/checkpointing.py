"""What a run needs to go on, and what it may be gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detr_fast.checkpoints import atomic_write, read_file
from detr_fast.data import ImageDataset
from detr_fast.engine.config import FREE_ON_RESUME, SPLIT_OF_A_STEP


def write_training_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Saves atomically: a crash at any moment leaves the previous file or the new one, never a part.

    Raises:
        OSError: it cannot be written, as where the disk is full; the previous file is intact.
    """
    with atomic_write(path) as file:
        torch.save(content, file)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file of `write_training_checkpoint` that training can go on from.

    Raises as `read_file` does, and ValueError for a file without a training state.
    """
    content = read_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("training"), dict):
        raise ValueError(f"{path}: holds no training state to resume; start from its weights instead")
    return content


def dataset_identity(dataset: ImageDataset) -> dict[str, Any]:
    """What tells a data set from another one: its images, objects and annotations, by number and checksum."""
    ids = ",".join(map(str, dataset.image_ids))
    identity: dict[str, Any] = {
        "images": len(dataset),
        "image ids": _short(hashlib.sha256(ids.encode())),
        "objects": dataset.num_objects,
    }
    if dataset.annotation_file is not None:
        digest = hashlib.sha256()
        with dataset.annotation_file.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
        identity["annotations"] = _short(digest)
    return identity


def _short(digest: Any) -> str:
    return digest.hexdigest()[:16]


def check_resumable(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compares the settings of an interrupted run and of its continuation.

    Args:
        then: "config", "options", "images_per_step", "processes", "data" and "detector" of the first. What an
            earlier version did not record is not compared.
        now: the same of the second.

    Returns:
        A line for each setting that changed and may.

    Raises:
        ValueError: naming what changed and may not, as the curve of the losses would be another.
    """
    changed = _changes({**now["config"], **then["config"]}, now["config"])
    for name in ("images_per_step", "processes"):
        changed.update(_changes({name: then.get(name)}, {name: now[name]}))
    free = FREE_ON_RESUME | SPLIT_OF_A_STEP
    refused = {name: values for name, values in changed.items() if name not in free}
    if then["detector"] != now["detector"]:
        refused.update(_detector_changes(then["detector"], now["detector"]))
    for name in ("data", "options"):
        refused.update(_changes({**now[name], **then.get(name, {})}, now[name]))
    if refused:
        listing = "; ".join(f"{name}: {old} then, {new} now" for name, (old, new) in sorted(refused.items()))
        raise ValueError(f"cannot be resumed with other settings: {listing}")
    return [f"{name}: {old} until now, {new} from here" for name, (old, new) in sorted(changed.items())]


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*now, *(name for name in then if name not in now)]
    return {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}


def _detector_changes(then: Any, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of two `Detector.description`s that differ: of the model, its classes and image sizes."""
    if not isinstance(then, Mapping):
        return {"the model": ("none", "one")}
    changed = _changes(then, now)
    found: dict[str, tuple[Any, Any]] = {}
    for name, noun in (("config", "model"), ("categories", "category")):
        if name in changed:
            old, new = (x if isinstance(x, Mapping) else {} for x in changed.pop(name))
            found.update({f"{noun} {key}": values for key, values in [*_changes(old, new).items()][:5]})
    return {**found, **changed}
