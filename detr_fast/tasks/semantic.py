"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from detr_fast.data import CocoPanoptic, DataSource, ImageDataset, SemanticMaps
from detr_fast.data.build import build_segments
from detr_fast.data.dataset import Transform
from detr_fast.data.layouts import Split
from detr_fast.distributed import gather
from detr_fast.drawing.fonts import drawable
from detr_fast.drawing.masks import draw_semantic
from detr_fast.metrics import MeanIoU
from detr_fast.tasks.task import Categories, Record, Scores, match_labels, unique_names


class Semantic:
    """Results hold `labels` [h, w], the class of each pixel."""

    name = "semantic"
    masks = True
    best_metric = "mIoU"
    records_key = "classes"
    threshold: float | None = None

    def dataset(
        self, source: DataSource, split: Split, transforms: Transform, *, masks: bool, **options: Any
    ) -> ImageDataset:
        return build_segments(source, split, transforms, semantic=True, masks=masks, **options)

    def scorer(self, dataset: ImageDataset, categories: Categories) -> SemanticScorer:
        return SemanticScorer(dataset, categories)

    def format(self, metrics: Mapping[str, float]) -> str:
        titles = {
            "mIoU": "mean IoU",
            "fwIoU": "IoU weighted by frequency",
            "mACC": "mean accuracy of classes",
            "pACC": "accuracy of pixels",
        }
        return "\n".join(f" {name:<6} {100 * metrics[name]:6.1f}  {title}" for name, title in titles.items())

    def select(self, result: Mapping[str, Any], categories: Categories, threshold: float) -> dict[str, Any]:
        return dict(result)

    def records(self, result: Mapping[str, Any], categories: Categories) -> list[Record]:
        """{"label", "category_id", "name", "area" in pixels} of each class that is there, largest first."""
        labels, counts = (x.tolist() for x in torch.unique(result["labels"], return_counts=True))
        return [
            {"label": label, "category_id": categories[label][0], "name": categories[label][1], "area": area}
            for area, label in sorted(zip(counts, labels, strict=True), reverse=True)
            if label in categories
        ]

    def id_map(self, result: Mapping[str, Any]) -> Image.Image:
        """Grayscale, the label of each pixel; 16 bits where a label needs them."""
        labels = result["labels"].cpu().numpy()
        return Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16))

    def overlay(self, image: Image.Image, result: Mapping[str, Any], categories: Categories) -> Image.Image:
        return draw_semantic(
            image, result["labels"], {k: drawable(*named) for k, named in categories.items()}
        )

    def by_query(self, result: Mapping[str, Any], categories: Categories, most: int) -> dict[str, Any]:
        raise ValueError("attention: semantic results mix all queries; expected another task")


class SemanticScorer:
    """Mean IoU."""

    def __init__(self, dataset: ImageDataset, categories: Categories) -> None:
        if not isinstance(dataset, CocoPanoptic | SemanticMaps):
            raise TypeError(f"dataset: expected CocoPanoptic or SemanticMaps; got {type(dataset).__name__}")
        self.dataset = dataset
        self.iou = MeanIoU(dataset.num_classes)
        labels = match_labels(dataset, categories)
        # The last entry stands for all labels beyond the table.
        self.table = torch.full((max(labels, default=-1) + 2,), self.iou.ignore)
        self.table[list(labels)] = torch.tensor(list(labels.values()))

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        predicted = self.table[result["labels"].cpu().clamp(max=len(self.table) - 1)]
        self.iou.update(predicted, self.dataset.semantic_map(index))

    def scores(self) -> Scores:
        first, *others = gather(self.iou)
        for other in others:
            first.merge(other)
        names = unique_names(self.dataset.category_names)
        classes = {names[label]: {"IoU": iou} for label, iou in first.per_class().items()}
        labels = sorted(names)
        confusion = np.zeros((len(labels) + 1,) * 2, np.int64)
        confusion[:-1] = first.confusion.numpy()[np.ix_(labels, [*labels, -1])]
        return Scores(first.result(), classes, {}, confusion, tuple(names[label] for label in labels))
