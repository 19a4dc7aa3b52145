"""Training losses."""

from detr_fast.criterion.detection import SetCriterion, detection_weights
from detr_fast.criterion.dino import DINOCriterion, dino_weights
from detr_fast.criterion.focal import FocalSetCriterion, VarifocalSetCriterion, focal_weights
from detr_fast.criterion.masks import MaskFormerCriterion, MaskSetCriterion, PointDraws, mask_weights

__all__ = [
    "DINOCriterion",
    "FocalSetCriterion",
    "MaskFormerCriterion",
    "MaskSetCriterion",
    "PointDraws",
    "SetCriterion",
    "VarifocalSetCriterion",
    "detection_weights",
    "dino_weights",
    "focal_weights",
    "mask_weights",
]
