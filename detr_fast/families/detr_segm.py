"""DETR for segmentation: a mask for each box of a DETR (Carion et al. 2020, section 4.4)."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import torch

from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.criterion.detection import LOSSES
from detr_fast.families.detr import VARIANTS, detr_attention
from detr_fast.families.family import Family, Frozen, backbone_groups
from detr_fast.families.results import Geometry, ResultOptions, Results
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRSegm, DETRSegmConfig
from detr_fast.postprocess import postprocess_detr_panoptic, postprocess_segm
from detr_fast.structures import Predictions


def detr_segm_criterion(config: DETRSegmConfig) -> SetCriterion:
    """DETR's losses, and focal and dice loss of the last layer's masks."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    weights = detection_weights(config.dec_layers, masks=True)
    return SetCriterion(config.num_classes, matcher, weights, losses=(*LOSSES, "masks"))


def _around_frozen(detector: DETR) -> DETRSegm:
    model = DETRSegm(DETRSegmConfig(**dataclasses.asdict(detector.config), frozen_detector=True))
    model.load_detector(detector.state_dict())
    return model


def _segments(predictions: Predictions, geometry: Geometry, options: ResultOptions) -> Results:
    return postprocess_detr_panoptic(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        things=options.things,
        crop_padding=True,
        threshold=0.85 if options.threshold is None else options.threshold,
    )


def _instances(predictions: Predictions, geometry: Geometry, options: ResultOptions) -> Results:
    results = postprocess_segm(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        score_threshold=options.threshold or 0.0,
    )
    things = torch.tensor(sorted(options.things), device=predictions.logits.device)
    kept = [torch.isin(result["labels"], things) for result in results]
    return [
        {name: values[keep] for name, values in result.items()}
        for keep, result in zip(kept, results, strict=True)
    ]


FAMILY = Family(
    name="detr-segm",
    model=DETRSegm,
    config=DETRSegmConfig,
    signature=re.compile(r"^(detr|mask_head)\."),
    variants=VARIANTS,
    criterion=detr_segm_criterion,
    decode={"panoptic": _segments, "instance": _instances},
    attention=lambda model: detr_attention(model.detr),
    masks=True,
    contiguous_labels=False,
    training={"epochs": 25, "lr_drop": 15},
    parameter_groups=partial(backbone_groups, prefix="detr.backbone."),
    frozen=Frozen("detr", _around_frozen),
)
