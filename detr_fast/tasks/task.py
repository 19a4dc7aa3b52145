"""What the engine asks of a task."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr_fast.data import DataSource, ImageDataset
from detr_fast.data.dataset import Transform
from detr_fast.data.layouts import Split

Categories: TypeAlias = Mapping[int, tuple[int, str]]
"""For each label that stands for something, (category id, name)."""

Record: TypeAlias = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What a model scores on a data set, and what stands behind it.

    Attributes:
        metrics: the task's numbers.
        classes: those of each class, by its name, that occurs.
        curves: precision at the recalls 0, 0.01, ... 1 by title, where the task has such.
        confusion: [K + 1, K + 1] counts, true class (rows) by predicted class, the last row and column
            "none"; None where nobody counted.
        confused: names of the first K rows.
        detections: in COCO's result format, where the task has such.
    """

    metrics: dict[str, float]
    classes: dict[str, dict[str, float]]
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    confused: tuple[str, ...] = ()
    detections: list[dict[str, Any]] | None = None


class Scorer(Protocol):
    """Collects the results of one rank's images."""

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Takes the result of the data set's image at `index`, at its original size."""

    def scores(self) -> Scores:
        """Of all ranks' images; to be called on every rank."""


class Task(Protocol):
    """What models of one kind learn from, and how their results are scored, written and drawn.

    A result is what the postprocessing of the task returns for one image.
    """

    name: str
    masks: bool
    """Whether targets hold masks, unless said otherwise."""
    best_metric: str
    """The number that tells the best checkpoint."""
    records_key: str
    """What records are called where they are listed."""
    threshold: float | None
    """Lowest score that is shown by default; None where the family decides."""

    def dataset(
        self, source: DataSource, split: Split, transforms: Transform, *, masks: bool, **options: Any
    ) -> ImageDataset:
        """A split with the targets of the task; `options` are those of the data set."""

    def scorer(self, dataset: ImageDataset, categories: Categories) -> Scorer:
        """A fresh scorer on the ground truth of `dataset`; `categories` are the model's."""

    def format(self, metrics: Mapping[str, float]) -> str:
        """The numbers as a person reads them."""

    def select(self, result: Mapping[str, Any], categories: Categories, threshold: float) -> dict[str, Any]:
        """The part of a result that is worth showing, best first."""

    def records(self, result: Mapping[str, Any], categories: Categories) -> list[Record]:
        """A selected result as plain data."""

    def id_map(self, result: Mapping[str, Any]) -> Image.Image | None:
        """A selected result as a picture to be stored, where the records alone do not tell it."""

    def overlay(self, image: Image.Image, result: Mapping[str, Any], categories: Categories) -> Image.Image:
        """A copy of the image with a selected result drawn over it."""

    def by_query(self, result: Mapping[str, Any], categories: Categories, most: int) -> dict[str, Any]:
        """The first `most` finds of a selected result, as `attention_pictures` takes them.

        `queries`, `labels`, `captions` and `boxes_xyxy` or `masks`; ValueError where results mix all queries.
        """


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Names as they are, with the id where several share one or a name is empty."""
    counts = Counter(names.values())
    return {i: name if name and counts[name] == 1 else f"{name} ({i})".strip() for i, name in names.items()}


def match_labels(dataset: ImageDataset, categories: Categories) -> dict[int, int]:
    """For each label of a model that means something to a data set, the data set's label for it.

    A category is the same where id and name agree, else where the names alone do (letter case, spaces,
    hyphens and underscores aside) and no other category of either side has that name. A model whose classes
    have no names goes by the ids.

    Args:
        dataset: what the model is to be evaluated on.
        categories: the model's.

    Raises:
        ValueError: the data set has objects of a category that the model does not have.
    """
    theirs = {label: _plain(name) for label, name in dataset.category_names.items()}
    ours = {label: _plain(name) for label, (_, name) in categories.items()}
    nameless = all(name == f"class {label}" for label, name in ours.items())
    by_id = {category: label for label, (category, _) in categories.items()}
    by_name = {name: label for label, name in ours.items()}
    seen, known = Counter(theirs.values()), Counter(ours.values())
    matches: dict[int, int] = {}
    for label, name in theirs.items():
        ours_by_id = by_id.get(dataset.label_to_category[label])
        if ours_by_id is not None and (nameless or ours[ours_by_id] == name):
            matches[ours_by_id] = label
        elif seen[name] == known[name] == 1:
            matches[by_name[name]] = label
    if unknown := dataset.used_labels - set(matches.values()):
        listed = ", ".join(
            f"{dataset.label_to_category[label]} ({dataset.category_names[label]})"
            for label in sorted(unknown)[:10]
        )
        named = ", ".join(f"{category} ({name})" for category, name in list(categories.values())[:10])
        raise ValueError(
            f"data: {len(unknown)} of its categories are none of the model's: {listed}"
            f"{', ...' if len(unknown) > 10 else ''}; the model has {named}"
            f"{', ...' if len(categories) > 10 else ''}"
        )
    moved = sum(categories[ours][0] != dataset.label_to_category[data] for ours, data in matches.items())
    if moved:
        logger.warning("data: %d categories have other ids than the model's: matched by their names", moved)
    return matches


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
