"""Deformable DETR: boxes from deformable attention over several levels (Zhu et al. 2021)."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from detr_fast.criterion import FocalSetCriterion, focal_weights
from detr_fast.families.family import TINY, Family, Groups, OptimizerSettings
from detr_fast.families.results import detection_results
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DeformableDETR, DeformableDETRConfig
from detr_fast.models.decoder_attention import AttentionSource
from detr_fast.models.deformable_detr import parameter_groups
from detr_fast.postprocess.detection import best_pairs


def deformable_detr_criterion(config: DeformableDETRConfig) -> FocalSetCriterion:
    """Deformable DETR's losses."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, classification="focal")
    weights = focal_weights(config.dec_layers, two_stage=config.two_stage)
    return FocalSetCriterion(config.num_classes, matcher, weights)


def _attention(model: DeformableDETR) -> AttentionSource:
    decoder: Any = model.transformer.decoder
    return AttentionSource(decoder.layers[-1].cross_attn, decoder)


def _groups(model: nn.Module, settings: OptimizerSettings) -> Groups:
    return parameter_groups(model, settings.lr, settings.lr_backbone)


FAMILY = Family(
    name="deformable-detr",
    model=DeformableDETR,
    config=DeformableDETRConfig,
    signature=re.compile(r"^transformer\.level_embed$"),
    variants={
        "r50": {},
        "r50-single-scale": {"num_feature_levels": 1},
        "r50-dc5-single-scale": {"num_feature_levels": 1, "dilation": True},
        "r50-refine": {"with_box_refine": True},
        "r50-two-stage": {"with_box_refine": True, "two_stage": True},
        "r101-refine": {"backbone": "resnet101", "with_box_refine": True},
        "tiny": {**TINY, "num_feature_levels": 3, "with_box_refine": True},
    },
    criterion=deformable_detr_criterion,
    decode={"detection": detection_results(best_pairs)},
    detections=best_pairs,
    attention=_attention,
    masks=False,
    contiguous_labels=True,
    training={"epochs": 50, "lr": 2e-4, "lr_backbone": 2e-5, "lr_drop": 40},
    parameter_groups=_groups,
)
