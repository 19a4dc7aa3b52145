"""Detectors from files: this package's checkpoints, official ones, and exported files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.checkpoints import Folder, describe, load_state_dict, open_checkpoint, options_in
from detr_fast.distributed import pick_device
from detr_fast.engine.coco_categories import coco_categories
from detr_fast.engine.detector import Detector
from detr_fast.engine.exported import OPENERS, ExportedModel, Runtime, open_file
from detr_fast.families import FAMILIES, check_task, family_in, family_of, model_config
from detr_fast.machine import cpu_has_bfloat16

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_detector(
    path: str | Path,
    *,
    model: str | None = None,
    task: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    threads: int | None = None,
    compile: bool = False,
    allow_non_finite: bool = False,
) -> Detector:
    """A model from a checkpoint: of this package's training, official, of transformers, or an exported file.

    Args:
        path: the file. An official one tells its sizes by its shapes, and what has no shape by its `args`. Or
            a folder of transformers, or `model.safetensors` beside its `config.json`.
        model: a name of `MODELS` that the file must fit: a family, or one of its variants, which also tells
            what an official file without `args` does not (dilation has no shape).
        task: what to use it for; by default what it was trained for.
        device: where to put it.
        dtype: see `Detector.load`, as the next two.
        threads: CPU threads.
        compile: run the network by `torch.compile`.
        allow_non_finite: take weights that are NaN or infinite, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a known family, or of another one than `model`, or the model does
            not do the task.
    """
    path, dtype = Path(path).expanduser(), _dtype(dtype)
    exported = path.suffix in OPENERS
    where = pick_device("cpu" if exported and device == "auto" else str(device))
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1; got {threads}")
    if exported:
        _check_exported_options(path, where, dtype, compile)
        return _exported(path, model, task, Runtime(threads, dtype))
    if dtype == torch.float16 and where.type == "cpu":
        raise ValueError("dtype: float16 needs a GPU; a CPU takes float32 or bfloat16")
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(path, allow_non_finite=allow_non_finite)
    content, remarks = checkpoint.content, checkpoint.remarks
    try:
        if isinstance(content, Mapping) and "detector" in content:
            detector = _described(content["detector"], checkpoint.state, model).with_task(task)
            remarks = ()
        else:
            detector = _official(options_in(content), checkpoint.state, model, task)
            if isinstance(content, Mapping) and isinstance(content.get("transformers"), Folder):
                _surround(detector, content["transformers"], task)
        load_state_dict(detector.model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a description that this version cannot read: {error!r}") from error
    detector.remarks = tuple(f"{path}: {remark}" for remark in remarks)
    if dtype == torch.bfloat16 and where.type == "cpu" and cpu_has_bfloat16() is False:
        detector.remarks += ("dtype: this CPU has no instructions for bfloat16; float32 is faster",)
    detector.model.to(where).eval()
    detector.dtype = dtype
    if compile:
        detector.model.compile()
    return detector


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(f"dtype: expected float32, bfloat16 or float16; got {dtype}")
    return found


def _check_exported_options(path: Path, device: torch.device, dtype: torch.dtype, compile: bool) -> None:
    if device.type != "cpu":
        raise ValueError(f"device: an exported file runs on the CPU; got {device} for {path.name}")
    if compile:
        raise ValueError(f"compile: an exported file is compiled already; got {path.name}")
    if dtype != torch.float32 and (path.suffix, dtype) != (".xml", torch.bfloat16):
        raise ValueError(f"dtype: {path.name} computes in float32 (.xml files also in bfloat16); got {dtype}")


def _exported(path: Path, model: str | None, task: str | None, runtime: Runtime) -> Detector:
    """A detector whose model is an exported file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    run, about = open_file(path, runtime)
    family = about["family"]
    if model is not None and family_of(model) != family:
        raise ValueError(f"{path}: model: the file holds {family}; got {model!r}")
    config = FAMILIES[family].config(**about["config"])
    network = ExportedModel(run, family, config, about["processing"], about["size_multiple"])
    return _around(network, about).with_task(task)


def _around(network: nn.Module, about: Mapping[str, Any]) -> Detector:
    """A detector from its `description`."""
    return Detector(
        network,
        {int(label): (category, name) for label, (category, name) in about["categories"].items()},
        about["image_size"],
        about["max_size"],
        about["family"],
        about["task"],
        None if about["things"] is None else frozenset(about["things"]),
    )


def _described(about: Mapping[str, Any], state: Mapping[str, Tensor], model: str | None) -> Detector:
    """A detector from its `description`, whose sizes must be those of the weights."""
    if about["family"] not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}; got {about['family']!r}")
    family = FAMILIES[about["family"]]
    config: Any = family.config(**about["config"])
    for name, size in family.config.sizes_in(state, about["config"]).items():
        if type(size) is int and size != getattr(config, name):
            raise ValueError(
                f"{name}: expected the weights' {size}; the description has {getattr(config, name)}"
            )
    if model is not None:
        same = family_of(model) == about["family"]
        if not same or (model not in FAMILIES and model_config(model).backbone != config.backbone):
            raise ValueError(
                f"model: the checkpoint holds {family.name} with {config.backbone}; got {model!r}"
            )
    return _around(family.model(config), about)


def _official(args: Any, state: Mapping[str, Tensor], model: str | None, task: str | None) -> Detector:
    """A detector from an official file. The class count tells its classes and task, or nobody does."""
    name = family_in(state)
    wanted = None if model is None else family_of(model)
    if name is None or wanted not in (None, name):
        expected = " or ".join(FAMILIES) if wanted is None else wanted
        found = name or f"what looks like {describe(state)}"
        raise ValueError(f"model: expected a checkpoint of {expected}; got {found}")
    family = FAMILIES[name]
    variant = None if model in (None, name) else model.removeprefix(f"{name}-")
    config = family.official_config(state, args, variant)
    categories, things, likely = coco_categories(config.num_classes)
    if task is None and likely in family.tasks:
        task = likely
    return Detector(
        family.model(config),
        categories,
        family=name,
        task_name=check_task(name, task),
        things=things,
    )


def _surround(detector: Detector, folder: Folder, task: str | None) -> None:
    """Takes over what a folder of transformers says of labels, sizes and task; COCO's keep their ids."""
    for name, told in folder.options.items():
        if (own := getattr(detector.config, name, told)) != told:
            raise ValueError(f"config.json: {name}: expected the weights' {own}; got {told}")
    about = folder.about
    if folder.labels is not None:
        ids, usual = about.get("category_ids", {}), detector.categories
        detector.categories = {
            label: usual[label]
            if usual.get(label, (0, None))[1] == name
            else (ids.get(str(label), label), name)
            for label, name in folder.labels.items()
        }
    if "things" in about:
        detector.things = None if about["things"] is None else frozenset(about["things"])
    detector.image_size = about.get("image_size", detector.image_size)
    detector.max_size = about.get("max_size", detector.max_size)
    if task is None and "task" in about:
        detector.task_name = check_task(detector.family, about["task"])
