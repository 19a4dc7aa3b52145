"""MaskFormer: a class and a mask for each query (Cheng et al. 2021)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from detr_fast.criterion import MaskFormerCriterion, mask_weights
from detr_fast.families.family import DEMO, TINY, Family, Groups, OptimizerSettings, Variants
from detr_fast.families.results import mask_instances, mask_labels, mask_segments
from detr_fast.matcher import MaskMatcher
from detr_fast.models import MaskFormer, MaskFormerConfig
from detr_fast.models.decoder_attention import AttentionSource

_SMALL = {"conv_dim": 64, "mask_dim": 64, "enc_dim_feedforward": 256}

VARIANTS: Variants = {
    "r50": {"backbone": "resnet50"},
    "r101": {"backbone": "resnet101"},
    "swin-t": {"backbone": "swin_t"},
    "swin-s": {"backbone": "swin_s"},
    "swin-b": {"backbone": "swin_b"},
    "swin-l": {"backbone": "swin_l"},
    "tiny": {**TINY, **_SMALL},
    "demo": {**DEMO, **_SMALL},
}


def maskformer_criterion(config: MaskFormerConfig) -> MaskFormerCriterion:
    """MaskFormer's losses."""
    matcher = MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal")
    return MaskFormerCriterion(config.num_classes, matcher, mask_weights(config.dec_layers, 1, 20, 1))


def mask_classifier_groups(model: Any, settings: OptimizerSettings) -> Groups:
    """The groups that MaskFormer and Mask2Former share."""
    return model.parameter_groups(settings.lr, settings.lr_backbone, settings.weight_decay)


def _attention(model: MaskFormer) -> AttentionSource:
    transformer: Any = model.sem_seg_head["predictor"].transformer
    return AttentionSource(transformer.decoder.layers[-1].multihead_attn, transformer)


FAMILY = Family(
    name="maskformer",
    model=MaskFormer,
    config=MaskFormerConfig,
    signature=re.compile(r"^sem_seg_head\.predictor\.transformer\."),
    variants=VARIANTS,
    criterion=maskformer_criterion,
    decode={
        "panoptic": partial(mask_segments, pixel_threshold=None),
        "semantic": mask_labels,
        "instance": mask_instances,
    },
    attention=_attention,
    masks=True,
    contiguous_labels=True,
    training={"clip_max_norm": 0.01},
    parameter_groups=mask_classifier_groups,
)
