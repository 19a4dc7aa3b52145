"""Training losses."""

from detr_fast.criterion.detection import SetCriterion, detection_weights
from detr_fast.criterion.focal import FocalSetCriterion, focal_weights

__all__ = ["FocalSetCriterion", "SetCriterion", "detection_weights", "focal_weights"]
