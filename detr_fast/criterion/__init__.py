"""Training losses."""

from detr_fast.criterion.detection import SetCriterion, detection_weights
from detr_fast.criterion.focal import FocalSetCriterion, focal_weights
from detr_fast.criterion.masks import MaskFormerCriterion, MaskSetCriterion, PointDraws, mask_weights

__all__ = [
    "FocalSetCriterion",
    "MaskFormerCriterion",
    "MaskSetCriterion",
    "PointDraws",
    "SetCriterion",
    "detection_weights",
    "focal_weights",
    "mask_weights",
]
