"""The earlier place of `detr_fast.metrics`."""

from detr_fast.metrics import MeanIoU, PanopticQuality, coco_detections, coco_metrics, format_metrics

__all__ = ["MeanIoU", "PanopticQuality", "coco_detections", "coco_metrics", "format_metrics"]
