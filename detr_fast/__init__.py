"""Fast operators for DETR-family models, and readable models around them."""

from detr_fast.criterion import (
    DINOCriterion,
    FocalSetCriterion,
    MaskFormerCriterion,
    MaskSetCriterion,
    SetCriterion,
)
from detr_fast.integrations.accelerate import accelerate, restore
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.models import (
    DETR,
    DINO,
    DeformableDETR,
    DeformableDETRConfig,
    DETRConfig,
    DETRSegm,
    DETRSegmConfig,
    DINOConfig,
    Mask2Former,
    Mask2FormerConfig,
    MaskFormer,
    MaskFormerConfig,
)

__version__ = "0.1.0"

__all__ = [
    "DETR",
    "DINO",
    "DETRConfig",
    "DETRSegm",
    "DETRSegmConfig",
    "DINOConfig",
    "DINOCriterion",
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
