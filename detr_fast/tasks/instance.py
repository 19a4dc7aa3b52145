"""Objects with masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from detr_fast.data import ImageDataset
from detr_fast.drawing.masks import draw_instances
from detr_fast.metrics.coco import encode_mask
from detr_fast.tasks.detection import BoxScorer, Detection, box_records, captions
from detr_fast.tasks.task import Categories, Record


class Instance(Detection):
    """Results hold what those of detection do, and `masks` [X, h, w] bool."""

    name = "instance"

    def scorer(self, dataset: ImageDataset, categories: Categories) -> BoxScorer:
        return BoxScorer(dataset, categories, kind="segm")

    def records(self, result: Mapping[str, Any], categories: Categories) -> list[Record]:
        """Those of detection with "segmentation", COCO's run lengths."""
        records = box_records(result, categories)
        for record, mask in zip(records, result["masks"], strict=True):
            record["segmentation"] = encode_mask(mask)
        return records

    def overlay(self, image: Image.Image, result: Mapping[str, Any], categories: Categories) -> Image.Image:
        boxes, labels = result["boxes"].tolist(), result["labels"].tolist()
        return draw_instances(image, result["masks"], boxes, labels, captions(result, categories))

    def by_query(self, result: Mapping[str, Any], categories: Categories, most: int) -> dict[str, Any]:
        return {**super().by_query(result, categories, most), "masks": result["masks"][:most]}
