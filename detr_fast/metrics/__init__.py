"""What predictions are worth: box and mask AP, panoptic quality, mean IoU."""

from detr_fast.metrics.coco import (
    CocoEvaluation,
    Evaluator,
    coco_detections,
    coco_evaluation,
    coco_metrics,
    format_metrics,
)
from detr_fast.metrics.panoptic import PanopticQuality
from detr_fast.metrics.semantic import MeanIoU

__all__ = [
    "CocoEvaluation",
    "Evaluator",
    "MeanIoU",
    "PanopticQuality",
    "coco_detections",
    "coco_evaluation",
    "coco_metrics",
    "format_metrics",
]
