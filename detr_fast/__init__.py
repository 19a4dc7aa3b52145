"""Fast operators for DETR-family models, and readable models around them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "Detector",
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

if TYPE_CHECKING:
    from detr_fast.engine.detector import Detector
else:

    def __getattr__(name: str) -> Any:
        """`Detector` needs the packages of the extra `train`, and is imported when it is asked for."""
        if name == "Detector":
            return import_module("detr_fast.engine.detector").Detector
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
