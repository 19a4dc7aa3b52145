"""Mask2Former: queries attend to what their last mask covers (Cheng et al. 2022)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from detr_fast.criterion import MaskSetCriterion, mask_weights
from detr_fast.families.family import Family
from detr_fast.families.maskformer import VARIANTS, mask_classifier_groups
from detr_fast.families.results import mask_instances, mask_labels, mask_segments
from detr_fast.matcher import MaskMatcher
from detr_fast.models import Mask2Former, Mask2FormerConfig
from detr_fast.models.decoder_attention import AttentionSource


def mask2former_criterion(config: Mask2FormerConfig, num_points: int = 12544) -> MaskSetCriterion:
    """Mask2Former's losses; `num_points` of a mask are compared."""
    matcher = MaskMatcher(2, 5, 5, num_points=num_points)
    weights = mask_weights(config.dec_layers + 1, 2, 5, 5)
    return MaskSetCriterion(config.num_classes, matcher, weights, num_points=num_points)


def _attention(model: Mask2Former) -> AttentionSource:
    predictor: Any = model.sem_seg_head["predictor"]
    layers = predictor.transformer_cross_attention_layers
    # the predictor gets all levels; its layers take turns
    return AttentionSource(
        layers[-1].multihead_attn, predictor, lambda levels: levels[(len(layers) - 1) % len(levels)]
    )


FAMILY = Family(
    name="mask2former",
    model=Mask2Former,
    config=Mask2FormerConfig,
    signature=re.compile(r"^sem_seg_head\.predictor\.(query_feat|static_query)"),
    variants={**VARIANTS, "swin-l": {"backbone": "swin_l", "num_queries": 200}},
    criterion=mask2former_criterion,
    decode={
        "panoptic": partial(mask_segments, pixel_threshold=0.5),
        "instance": mask_instances,
        "semantic": mask_labels,
    },
    attention=_attention,
    masks=True,
    contiguous_labels=True,
    augmentation="lsj",
    training={"epochs": 50, "lr_drop": 44, "weight_decay": 0.05, "clip_max_norm": 0.01},
    parameter_groups=mask_classifier_groups,
)
