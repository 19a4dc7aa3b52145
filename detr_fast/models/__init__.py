"""Models of the DETR family."""

from detr_fast.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detr_fast.models.detr import DETR, DETRConfig

__all__ = ["DETR", "DETRConfig", "DeformableDETR", "DeformableDETRConfig"]
