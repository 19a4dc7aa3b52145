"""Data sets, augmentation and batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detr_fast.data.batching import Batch, TrainBatches, begin_epoch, build_loader, collate
from detr_fast.data.build import build_detection_dataset
from detr_fast.data.coco import CocoDetection
from detr_fast.data.dataset import ImageDataset
from detr_fast.data.images import ImageError, load_image
from detr_fast.data.instances import Instances, read_instances
from detr_fast.data.layouts import DataSource
from detr_fast.data.panoptic import CocoPanoptic
from detr_fast.data.semantic import SemanticMaps
from detr_fast.data.synthetic import write_shapes_dataset
from detr_fast.data.transforms import (
    EvalTransform,
    LargeScaleJitter,
    Target,
    TrainTransform,
    image_to_tensor,
    resized_size,
)
from detr_fast.data.yolo import YoloSummary, convert_yolo

__all__ = [
    "Batch",
    "CocoDetection",
    "CocoPanoptic",
    "DataSource",
    "EvalTransform",
    "ImageDataset",
    "ImageError",
    "Instances",
    "LargeScaleJitter",
    "SemanticMaps",
    "Target",
    "TrainBatches",
    "TrainTransform",
    "YoloSummary",
    "begin_epoch",
    "build_detection_dataset",
    "build_loader",
    "collate",
    "convert_yolo",
    "image_to_tensor",
    "load_image",
    "read_instances",
    "resized_size",
    "write_shapes_dataset",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """`build_dataset` stands in `detr_fast.tasks`, above this package, and is found here too."""
        if name == "build_dataset":
            return import_module("detr_fast.tasks").build_dataset
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
