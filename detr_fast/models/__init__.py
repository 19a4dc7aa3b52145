"""Models of the DETR family."""

from detr_fast.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detr_fast.models.detr import DETR, DETRConfig
from detr_fast.models.detr_segm import DETRSegm, DETRSegmConfig
from detr_fast.models.dino import DINO, DINOConfig
from detr_fast.models.mask2former import Mask2Former, Mask2FormerConfig
from detr_fast.models.maskformer import MaskFormer, MaskFormerConfig

__all__ = [
    "DETR",
    "DINO",
    "DETRConfig",
    "DETRSegm",
    "DETRSegmConfig",
    "DINOConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "Mask2Former",
    "Mask2FormerConfig",
    "MaskFormer",
    "MaskFormerConfig",
]
