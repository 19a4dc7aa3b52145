"""DINO: Deformable DETR with denoising queries, which learns in 12 epochs (Zhang et al. 2022)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from detr_fast.criterion import DINOCriterion, dino_weights
from detr_fast.families.family import DEMO, TINY, Family
from detr_fast.families.results import detection_results
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DINO, DINOConfig
from detr_fast.models.decoder_attention import AttentionSource
from detr_fast.postprocess.detection import best_pairs

FIVE_SCALE = {"backbone_levels": 4, "num_feature_levels": 5}


def dino_criterion(config: DINOConfig) -> DINOCriterion:
    """DINO's losses."""
    matcher = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, classification="focal")
    return DINOCriterion(config.num_classes, matcher, dino_weights(config.dec_layers))


def _attention(model: DINO) -> AttentionSource:
    decoder: Any = model.transformer.decoder
    return AttentionSource(decoder.layers[-1].cross_attn, decoder)


FIND = partial(best_pairs, top=300)

FAMILY = Family(
    name="dino",
    model=DINO,
    config=DINOConfig,
    signature=re.compile(r"^transformer\.(enc_out_class_embed\.|level_embeds$)"),
    variants={
        "r50-4scale": {},
        "r50-5scale": FIVE_SCALE,
        "r101-4scale": {"backbone": "resnet101"},
        "swin-t-4scale": {"backbone": "swin_t"},
        "swin-l": {"backbone": "swin_l_384"},
        "swin-l-5scale": {"backbone": "swin_l_384", **FIVE_SCALE},
        "tiny": {**TINY, "num_feature_levels": 3, "dn_number": 50},
        "demo": {
            **DEMO,
            "backbone_levels": 1,
            "num_feature_levels": 1,
            "dn_number": 20,
            "dn_limit_groups": True,
        },
    },
    criterion=dino_criterion,
    decode={"detection": detection_results(FIND)},
    detections=FIND,
    attention=_attention,
    masks=False,
    contiguous_labels=False,
    training={"epochs": 12, "lr_drop": 11},
)
