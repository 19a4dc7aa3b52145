"""What the engine asks of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from PIL import Image

from detr_fast.data import ImageDataset

Categories: TypeAlias = Mapping[int, tuple[int, str]]
"""For each label that stands for something, (category id, name)."""

Record: TypeAlias = dict[str, Any]


class Scorer(Protocol):
    """Collects the results of one rank's images."""

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        """Takes the result of the data set's image at `index`, at its original size."""

    def metrics(self) -> dict[str, float]:
        """The numbers of all ranks' images; to be called on every rank."""


class Task(Protocol):
    """How results of one kind are scored, written and drawn.

    A result is what the postprocessing of the task returns for one image.
    """

    name: str
    best_metric: str
    """The number that tells the best checkpoint."""
    records_key: str
    """What records are called where they are listed."""

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


def check_labels(dataset: ImageDataset, categories: Categories) -> None:
    """ValueError where labels mean one thing to the data set and another to the model."""
    for label, category in dataset.label_to_category.items():
        known = categories.get(label)
        if known is None or known[0] != category:
            raise ValueError(
                f"data: label {label} is category {category} ({dataset.category_names[label]}), "
                f"but to the model it is {f'category {known[0]} ({known[1]})' if known else 'nothing'}"
            )
