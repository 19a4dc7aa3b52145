"""Fast operators for DETR-family models, and readable models around them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_fast import criterion, integrations, matcher, models, ops, structures
    from detr_fast.criterion import (
        DINOCriterion,
        FocalSetCriterion,
        MaskFormerCriterion,
        MaskSetCriterion,
        SetCriterion,
    )
    from detr_fast.engine.detector import Detector
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
    "criterion",
    "integrations",
    "matcher",
    "models",
    "ops",
    "restore",
    "structures",
]

_MODULES = ("criterion", "integrations", "matcher", "models", "ops", "structures")
_PLACES = {
    "criterion": [
        "DINOCriterion",
        "FocalSetCriterion",
        "MaskFormerCriterion",
        "MaskSetCriterion",
        "SetCriterion",
    ],
    "engine.detector": ["Detector"],
    "integrations.accelerate": ["accelerate", "restore"],
    "matcher": ["HungarianMatcher", "MaskMatcher"],
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for: with them torch, and for `Detector` the extra `train`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_PLACE.get(name, 'models')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
