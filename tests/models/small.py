"""Every model, small enough to run in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import models

SIZES: dict[str, Any] = {
    "backbone": "conv_stem_8",
    "hidden_dim": 64,
    "nheads": 4,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 6,
    "num_classes": 5,
}
DETECTOR_SIZES = {**SIZES, "backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 48}
MASK_SIZES = {**SIZES, "conv_dim": 64, "mask_dim": 32, "enc_dim_feedforward": 64}
LEVELS = {**SIZES, "num_feature_levels": 3}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "detr": lambda: models.DETR(models.DETRConfig(**SIZES)),
    "detr-segm": lambda: models.DETRSegm(models.DETRSegmConfig(**SIZES)),
    "deformable-detr": lambda: models.DeformableDETR(models.DeformableDETRConfig(**SIZES)),
    "deformable-detr-refine": lambda: models.DeformableDETR(
        models.DeformableDETRConfig(**SIZES, with_box_refine=True)
    ),
    "deformable-detr-two-stage": lambda: models.DeformableDETR(
        models.DeformableDETRConfig(**LEVELS, with_box_refine=True, two_stage=True)
    ),
    "dino": lambda: models.DINO(models.DINOConfig(**LEVELS)),
    "maskformer": lambda: models.MaskFormer(models.MaskFormerConfig(**MASK_SIZES)),
    "mask2former": lambda: models.Mask2Former(models.Mask2FormerConfig(**MASK_SIZES)),
}


def images(rng: torch.Generator, *sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(3, h, w, generator=rng) for h, w in sizes]
