"""Segments that cover the image: each thing one of its own, each kind of stuff one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from detr_fast.data import CocoPanoptic, DataSource, ImageDataset
from detr_fast.data.build import build_segments
from detr_fast.data.dataset import Transform
from detr_fast.data.layouts import Split
from detr_fast.distributed import gather
from detr_fast.drawing.fonts import drawable
from detr_fast.drawing.masks import draw_panoptic
from detr_fast.metrics import PanopticQuality
from detr_fast.tasks.task import Categories, Record, Scores, match_labels, unique_names


class Panoptic:
    """Results hold `segmentation` [h, w], the segment id of each pixel (0 = none), and `segments`, dicts with
    "id", "label", "isthing", "score" and "area"."""

    name = "panoptic"
    masks = True
    best_metric = "PQ"
    records_key = "segments"
    threshold: float | None = None

    def dataset(
        self, source: DataSource, split: Split, transforms: Transform, *, masks: bool, **options: Any
    ) -> ImageDataset:
        return build_segments(source, split, transforms, semantic=False, masks=masks, **options)

    def scorer(self, dataset: ImageDataset, categories: Categories) -> PanopticScorer:
        return PanopticScorer(dataset, categories)

    def format(self, metrics: Mapping[str, float]) -> str:
        """PQ, SQ and RQ of all, things and stuff."""
        rows = [
            f" {title:<6} " + " ".join(f"{100 * metrics[name + suffix]:6.1f}" for name in ("PQ", "SQ", "RQ"))
            for title, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        return "\n".join([" " * 8 + " ".join(f"{name:>6}" for name in ("PQ", "SQ", "RQ")), *rows])

    def select(self, result: Mapping[str, Any], categories: Categories, threshold: float) -> dict[str, Any]:
        """All segments that have a name, best first; the threshold decided before there were segments."""
        named = [segment for segment in result["segments"] if segment["label"] in categories]
        return {**result, "segments": sorted(named, key=lambda segment: -segment["score"])}

    def records(self, result: Mapping[str, Any], categories: Categories) -> list[Record]:
        """{"id", "label", "category_id", "name", "isthing", "score", "area"} of each segment."""
        return [
            {
                "id": segment["id"],
                "label": segment["label"],
                "category_id": categories[segment["label"]][0],
                "name": categories[segment["label"]][1],
                **{key: segment[key] for key in ("isthing", "score", "area")},
            }
            for segment in result["segments"]
        ]

    def id_map(self, result: Mapping[str, Any]) -> Image.Image:
        """RGB as in COCO's panoptic PNGs: a pixel's segment id is R + 256 G + 65536 B."""
        ids = result["segmentation"].cpu().numpy()
        return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))

    def overlay(self, image: Image.Image, result: Mapping[str, Any], categories: Categories) -> Image.Image:
        segments = [{**s, "caption": drawable(*categories[s["label"]])} for s in result["segments"]]
        return draw_panoptic(image, result["segmentation"], segments)

    def by_query(self, result: Mapping[str, Any], categories: Categories, most: int) -> dict[str, Any]:
        first = result["segments"][:most]
        ids = result["segmentation"].new_tensor([segment["id"] for segment in first])
        return {
            "queries": [segment["query"] for segment in first],
            "labels": [segment["label"] for segment in first],
            "captions": [f"{drawable(*categories[s['label']])} {s['score']:.2f}" for s in first],
            "masks": result["segmentation"] == ids[:, None, None],
        }


class PanopticScorer:
    """Panoptic quality."""

    def __init__(self, dataset: ImageDataset, categories: Categories) -> None:
        if not isinstance(dataset, CocoPanoptic):
            raise TypeError(f"dataset: expected a CocoPanoptic; got {type(dataset).__name__}")
        self.dataset = dataset
        self.labels = match_labels(dataset, categories)
        self.quality = PanopticQuality(dataset.things, dataset.label_to_category.keys() - dataset.things)

    def add(self, index: int, result: Mapping[str, Any]) -> None:
        # -1 is no class: what the data set does not know is left out
        segments = [
            {**segment, "label": self.labels.get(segment["label"], -1)} for segment in result["segments"]
        ]
        self.quality.update(result["segmentation"], segments, *self.dataset.panoptic_truth(index))

    def scores(self) -> Scores:
        first, *others = gather(self.quality)
        for other in others:
            first.merge(other)
        names = unique_names(self.dataset.category_names)
        return Scores(first.result(), {names[label]: quality for label, quality in first.per_class().items()})
