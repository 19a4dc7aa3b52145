"""Objects with masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from detr_fast.data import CocoDetection, DataSource, ImageDataset
from detr_fast.data.build import build_instances
from detr_fast.data.dataset import Transform
from detr_fast.data.layouts import Split
from detr_fast.drawing.masks import draw_instances
from detr_fast.metrics.coco import encode_mask
from detr_fast.tasks.detection import BoxScorer, Detection, box_records, captions
from detr_fast.tasks.task import Categories, Record


class Instance(Detection):
    """Results hold what those of detection do, and `masks` [X, h, w] bool."""

    name = "instance"
    masks = True

    def dataset(
        self, source: DataSource, split: Split, transforms: Transform, *, masks: bool, **options: Any
    ) -> CocoDetection:
        # masks are evaluated by what the file says, also where targets hold none
        return build_instances(source, split, transforms, segmentations=True, masks=masks, **options)

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
