"""Training losses."""

from detr_fast.criterion.detection import SetCriterion, detection_weights

__all__ = ["SetCriterion", "detection_weights"]
