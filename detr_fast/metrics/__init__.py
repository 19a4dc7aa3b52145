"""What predictions are worth: box and mask AP, panoptic quality, mean IoU."""

from detr_fast.metrics.coco import coco_detections, coco_metrics, format_metrics
from detr_fast.metrics.panoptic import PanopticQuality
from detr_fast.metrics.semantic import MeanIoU

__all__ = ["MeanIoU", "PanopticQuality", "coco_detections", "coco_metrics", "format_metrics"]
