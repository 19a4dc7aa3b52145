"""From predictions to detections, instances, segments and label maps."""

from detr_fast.postprocess.detection import postprocess_detection, postprocess_focal
from detr_fast.postprocess.detr_segm import postprocess_detr_panoptic, postprocess_segm
from detr_fast.postprocess.masks import (
    postprocess_instance,
    postprocess_panoptic,
    postprocess_semantic,
    postprocess_semantic_labels,
)

__all__ = [
    "postprocess_detection",
    "postprocess_detr_panoptic",
    "postprocess_focal",
    "postprocess_instance",
    "postprocess_panoptic",
    "postprocess_segm",
    "postprocess_semantic",
    "postprocess_semantic_labels",
]
