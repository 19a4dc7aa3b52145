"""A model with what it takes to use it: its task, the names of its classes and its image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.checkpoints import describe, load_state_dict, open_checkpoint, options_in
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.engine.coco_categories import coco_categories
from detr_fast.engine.exported import OPENERS, ExportedModel, open_file
from detr_fast.families import FAMILIES, check_task, family_in, family_of, model_config
from detr_fast.families.results import Geometry, Result, ResultOptions
from detr_fast.structures import PaddedImages
from detr_fast.tasks import TASKS, Task


@dataclass
class Detector:
    """A model and its surroundings.

    Args:
        categories: for each label that stands for something, (category id, name).
        image_size, max_size: short side that images are resized to, and bound of the long side, pixels.
        family: of `FAMILIES`.
        task_name: one that the family does.
        things: of a model that was trained on things and stuff, the labels of things; None for all others.
        remarks: a line for each thing that a person should know about the file that the model is from.
    """

    model: nn.Module
    categories: dict[int, tuple[int, str]]
    image_size: int = SCALES[-1]
    max_size: int = MAX_SIZE
    family: str = "detr"
    task_name: str = "detection"
    things: frozenset[int] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def task(self) -> Task:
        """The one called `task_name`."""
        return TASKS[self.task_name]

    @property
    def size_multiple(self) -> int:
        """What height and width of a batch are padded to a multiple of."""
        return getattr(self.model, "size_multiple", 1)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def contiguous_labels(self) -> bool:
        """Whether labels are 0, 1, ... rather than the category ids; the family's way where they are both."""
        if any(label != category for label, (category, _) in self.categories.items()):
            return True
        gaps = max(self.categories, default=-1) >= len(self.categories)
        return not gaps and FAMILIES[self.family].contiguous_labels

    def with_task(self, name: str | None) -> Detector:
        """The same model for another task; None leaves it alone.

        A model that was trained on panoptic data does all tasks of its family, others do their own.
        """
        if name is None or name == self.task_name:
            return self
        check_task(self.family, name)
        if self.task_name != "panoptic":
            raise ValueError(f"task: the checkpoint was trained for {self.task_name}; got {name!r}")
        return dataclasses.replace(self, task_name=name)

    def results(
        self, images: PaddedImages, geometry: Geometry, threshold: float | None = None
    ) -> list[Result]:
        """What the model says about a batch, one result of its task an image.

        Args:
            images: the batch.
            geometry: its sizes, and those that results are wanted at.
            threshold: lowest score of an instance, by default 0, or class score of a panoptic segment, by
                default the family's own.
        """
        decode = FAMILIES[self.family].decode[self.task_name]
        things = self.categories.keys() if self.things is None else self.things
        return decode(self.model(images), geometry, ResultOptions(things, threshold, self.things is None))

    def description(self) -> dict[str, Any]:
        """All but the weights, as plain data for a checkpoint's "detector" entry."""
        return {
            "family": self.family,
            "task": self.task_name,
            "config": dataclasses.asdict(self.config),
            "categories": {label: [category, name] for label, (category, name) in self.categories.items()},
            "things": None if self.things is None else sorted(self.things),
            "image_size": self.image_size,
            "max_size": self.max_size,
        }


def load_detector(
    path: str | Path,
    *,
    model: str | None = None,
    task: str | None = None,
    device: torch.device | str = "cpu",
    allow_non_finite: bool = False,
) -> Detector:
    """A model from a checkpoint of this package's training, or from an official one.

    Args:
        path: the file. An official one tells its sizes by its shapes, and what has no shape by its `args`.
        model: a name of `MODELS` that the file must fit: a family, or one of its variants, which also tells
            what an official file without `args` does not (dilation has no shape).
        task: what to use it for; by default what it was trained for.
        device: where to put it.
        allow_non_finite: take weights that are NaN or infinite, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a known family, or of another one than `model`, or the model does
            not do the task.
    """
    if Path(path).suffix in OPENERS:
        return _exported(Path(path), model, task)
    checkpoint = open_checkpoint(path, allow_non_finite=allow_non_finite)
    content, remarks = checkpoint.content, checkpoint.remarks
    try:
        if isinstance(content, Mapping) and "detector" in content:
            detector = _described(content["detector"], checkpoint.state, model).with_task(task)
            remarks = ()
        else:
            detector = _official(options_in(content), checkpoint.state, model, task)
        load_state_dict(detector.model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a description that this version cannot read: {error!r}") from error
    detector.remarks = tuple(f"{path}: {remark}" for remark in remarks)
    detector.model.to(device).eval()
    return detector


def _exported(path: Path, model: str | None, task: str | None) -> Detector:
    """A detector whose model is an exported file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    run, about = open_file(path)
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
