"""Models of the DETR family."""

from detr_fast.models.detr import DETR, DETRConfig

__all__ = ["DETR", "DETRConfig"]
