"""Objects with boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from PIL import Image

from detr_fast.data import CocoDetection, DataSource, ImageDataset
from detr_fast.data.build import build_instances
from detr_fast.data.dataset import Transform
from detr_fast.data.layouts import Split
from detr_fast.distributed import gather
from detr_fast.drawing.boxes import draw_detections
from detr_fast.drawing.fonts import drawable
from detr_fast.metrics import Evaluator, coco_detections, coco_evaluation, format_metrics
from detr_fast.tasks.task import Categories, Record, Scores, match_labels, unique_names


class Detection:
    """Results hold `scores` [X], `labels` [X] and `boxes` [X, 4] xyxy in pixels."""

    name = "detection"
    masks = False
    best_metric = "AP"
    records_key = "detections"
    threshold: float | None = 0.5

    def dataset(
        self, source: DataSource, split: Split, transforms: Transform, *, masks: bool, **options: Any
    ) -> CocoDetection:
        return build_instances(source, split, transforms, segmentations=masks, masks=masks, **options)

    def scorer(self, dataset: ImageDataset, categories: Categories) -> BoxScorer:
        return BoxScorer(dataset, categories)

    def format(self, metrics: Mapping[str, float]) -> str:
        return format_metrics(metrics)

    def select(self, result: Mapping[str, Any], categories: Categories, threshold: float) -> dict[str, Any]:
        return best_named(result, categories, threshold)

    def records(self, result: Mapping[str, Any], categories: Categories) -> list[Record]:
        return box_records(result, categories)

    def id_map(self, result: Mapping[str, Any]) -> None:
        return None

    def overlay(self, image: Image.Image, result: Mapping[str, Any], categories: Categories) -> Image.Image:
        labels = result["labels"].tolist()
        return draw_detections(image, result["boxes"].tolist(), labels, captions(result, categories))

    def by_query(self, result: Mapping[str, Any], categories: Categories, most: int) -> dict[str, Any]:
        first = {name: values[:most] for name, values in result.items()}
        return {
            "queries": first["queries"].tolist(),
            "labels": first["labels"].tolist(),
            "captions": captions(first, categories),
            "boxes_xyxy": first["boxes"].tolist(),
        }


class BoxScorer:
    """COCO's twelve numbers of boxes or masks."""

    def __init__(
        self, dataset: ImageDataset, categories: Categories, kind: Literal["bbox", "segm"] = "bbox"
    ) -> None:
        if not isinstance(dataset, CocoDetection):
            raise TypeError(f"dataset: expected a CocoDetection; got {type(dataset).__name__}")
        if kind == "segm" and dataset.instances.masks is None:
            raise ValueError("dataset: expected one with segmentations to compare masks with")
        self.kind, self.instances = kind, dataset.instances
        self.label_to_category = {
            label: dataset.label_to_category[known]
            for label, known in match_labels(dataset, categories).items()
        }
        self.detections: list[dict[str, Any]] = []

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        self.detections += coco_detections(self.instances.images.ids[index], result, self.label_to_category)

    def scores(self, evaluator: Evaluator = "auto") -> Scores:
        detections = list(chain.from_iterable(gather(self.detections)))
        found = coco_evaluation(self.instances, detections, kind=self.kind, evaluator=evaluator)
        names = unique_names(found.categories)
        classes = {names[i]: {"AP": ap, "AP50": ap50} for i, (ap, ap50) in found.by_category().items()}
        with_truth = found.precision[..., found.precision[0, 0] > -1]
        curves = {}
        if with_truth.size:
            curves = {
                "IoU 0.5": with_truth[0].mean(-1),
                "IoU 0.75": with_truth[5].mean(-1),
                "IoU 0.5 to 0.95": with_truth.mean((0, -1)),
            }
        return Scores(found.metrics, classes, curves, found.confusion, tuple(names.values()), detections)


def best_named(result: Mapping[str, Any], categories: Categories, threshold: float) -> dict[str, Any]:
    """The objects of a result whose score is at least `threshold`, best first.

    Labels without a category (COCO's ids have gaps) are left out.
    """
    labels, scores = result["labels"], result["scores"]
    known = torch.tensor([label in categories for label in labels.tolist()], dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    kept = order[((scores >= threshold) & known.to(scores.device))[order]]
    return {name: values[kept] for name, values in result.items()}


def box_records(result: Mapping[str, Any], categories: Categories) -> list[Record]:
    """{"label", "category_id", "name", "score", "box_xyxy": [x0, y0, x1, y1] in pixels} of each object."""
    rows = zip(*(result[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
    return [
        {
            "label": label,
            "category_id": categories[label][0],
            "name": categories[label][1],
            "score": score,
            "box_xyxy": [round(v, 2) for v in box],
        }
        for label, score, box in rows
    ]


def captions(result: Mapping[str, Any], categories: Categories) -> Sequence[str]:
    """A name and a score for each object."""
    rows = zip(result["labels"].tolist(), result["scores"].tolist(), strict=True)
    return [f"{drawable(*categories[label])} {score:.2f}" for label, score in rows]
