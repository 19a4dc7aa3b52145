"""Fast operators for DETR-family models, and readable models around them."""

from detr_fast.criterion import FocalSetCriterion, MaskFormerCriterion, MaskSetCriterion, SetCriterion
from detr_fast.integrations.accelerate import accelerate, restore
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.models import (
    DETR,
    DeformableDETR,
    DeformableDETRConfig,
    DETRConfig,
    DETRSegm,
    DETRSegmConfig,
    Mask2Former,
    Mask2FormerConfig,
    MaskFormer,
    MaskFormerConfig,
)

__version__ = "0.1.0"

__all__ = [
    "DETR",
    "DETRConfig",
    "DETRSegm",
    "DETRSegmConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "FocalSetCriterion",
    "HungarianMatcher",
    "Mask2Former",
    "Mask2FormerConfig",
    "MaskFormer",
    "MaskFormerConfig",
    "MaskFormerCriterion",
    "MaskMatcher",
    "MaskSetCriterion",
    "SetCriterion",
    "accelerate",
    "restore",
]
