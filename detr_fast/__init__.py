"""Fast operators for DETR-family models, and readable models around them."""

from detr_fast.criterion import SetCriterion
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig

__version__ = "0.1.0"

__all__ = ["DETR", "DETRConfig", "HungarianMatcher", "SetCriterion"]
