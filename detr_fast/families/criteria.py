"""Each family's matcher and losses, with the official weights."""

from __future__ import annotations

from detr_fast.criterion import (
    FocalSetCriterion,
    MaskFormerCriterion,
    MaskSetCriterion,
    SetCriterion,
    detection_weights,
    focal_weights,
    mask_weights,
)
from detr_fast.criterion.detection import LOSSES
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.models import (
    DeformableDETRConfig,
    DETRConfig,
    DETRSegmConfig,
    Mask2FormerConfig,
    MaskFormerConfig,
)


def detr_criterion(config: DETRConfig, eos_coef: float = 0.1) -> SetCriterion:
    """DETR's; `eos_coef` is the weight of "no object"."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    return SetCriterion(config.num_classes, matcher, detection_weights(config.dec_layers), eos_coef)


def detr_segm_criterion(config: DETRSegmConfig) -> SetCriterion:
    """DETR's, and focal and dice loss of the last layer's masks."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    weights = detection_weights(config.dec_layers, masks=True)
    return SetCriterion(config.num_classes, matcher, weights, losses=(*LOSSES, "masks"))


def deformable_detr_criterion(config: DeformableDETRConfig) -> FocalSetCriterion:
    """Deformable DETR's."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, classification="focal")
    weights = focal_weights(config.dec_layers, two_stage=config.two_stage)
    return FocalSetCriterion(config.num_classes, matcher, weights)


def maskformer_criterion(config: MaskFormerConfig) -> MaskFormerCriterion:
    """MaskFormer's."""
    matcher = MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal")
    return MaskFormerCriterion(config.num_classes, matcher, mask_weights(config.dec_layers, 1, 20, 1))


def mask2former_criterion(config: Mask2FormerConfig, num_points: int = 12544) -> MaskSetCriterion:
    """Mask2Former's; `num_points` of a mask are compared."""
    matcher = MaskMatcher(2, 5, 5, num_points=num_points)
    weights = mask_weights(config.dec_layers + 1, 2, 5, 5)
    return MaskSetCriterion(config.num_classes, matcher, weights, num_points=num_points)
