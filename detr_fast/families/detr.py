"""DETR: boxes from a transformer over one feature map (Carion et al. 2020)."""

from __future__ import annotations

import re
from typing import Any

from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.families.family import TINY, Family, Variants
from detr_fast.families.results import detection_results
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig
from detr_fast.models.decoder_attention import AttentionSource
from detr_fast.postprocess.detection import best_classes

VARIANTS: Variants = {
    "r50": {"backbone": "resnet50"},
    "r50-dc5": {"backbone": "resnet50", "dilation": True},
    "r101": {"backbone": "resnet101"},
    "r101-dc5": {"backbone": "resnet101", "dilation": True},
    "r18": {"backbone": "resnet18"},
    "r34": {"backbone": "resnet34"},
    "tiny": TINY,
}


def detr_criterion(config: DETRConfig, eos_coef: float = 0.1) -> SetCriterion:
    """DETR's losses; `eos_coef` is the weight of "no object"."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    return SetCriterion(config.num_classes, matcher, detection_weights(config.dec_layers), eos_coef)


def detr_attention(model: DETR) -> AttentionSource:
    """The last layer's attention to the encoded image."""
    layer: Any = model.transformer.decoder.layers[-1]
    return AttentionSource(layer.multihead_attn, model.transformer)


FAMILY = Family(
    name="detr",
    model=DETR,
    config=DETRConfig,
    signature=re.compile(r"^transformer\.decoder\.layers\.\d+\.multihead_attn\."),
    variants=VARIANTS,
    criterion=detr_criterion,
    decode={"detection": detection_results(best_classes)},
    detections=best_classes,
    attention=detr_attention,
    masks=False,
    contiguous_labels=False,
)
