"""Whole models beside transformers' with the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import import_peer
from benchmarks.peers.transformers_names import DEFORMABLE_DETR, MASK2FORMER, renamed
from detr_fast.models import DeformableDETR, DeformableDETRConfig, Mask2Former, Mask2FormerConfig
from detr_fast.models.deformable_attention import MSDeformAttn

DEFORMABLE_DETR_R50, MASK2FORMER_R50 = "Deformable DETR R50", "Mask2Former R50"
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def our_model(name: str) -> nn.Module:
    """Random weights, for inference; sampling points spread over a few pixels, as trained ones do."""
    model: nn.Module
    if name == DEFORMABLE_DETR_R50:
        model = DeformableDETR(DeformableDETRConfig())
    else:
        model = Mask2Former(Mask2FormerConfig())
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.05)
    return model.eval().requires_grad_(False)


def our_forward(model: nn.Module) -> Forward:
    """Pixels [B, 3, H, W] -> the last layer's classes and boxes or masks."""

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = model(pixels)
        return found.logits[-1], found.boxes[-1] if hasattr(found, "boxes") else found.masks[-1]

    return forward


def why_not_theirs() -> str | None:
    """Why transformers' models cannot run here, or None."""
    module, missing = import_peer("transformers")
    if module is None or int(module.__version__.partition(".")[0]) >= 5:
        return missing
    return f"transformers {module.__version__}: parameters are known by the names of version 5"


def their_forward(name: str, model: nn.Module) -> Forward:
    """The same of transformers' model with the weights of ours, on its device.

    Raises ImportError without transformers, ValueError where its names differ from those of version 5.
    """
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config: Any
    theirs: nn.Module
    if name == DEFORMABLE_DETR_R50:
        backbone = transformers.ResNetConfig(out_features=stages[1:])
        config = transformers.DeformableDetrConfig(
            backbone_config=backbone, use_timm_backbone=False, num_labels=91
        )
        theirs = transformers.DeformableDetrForObjectDetection(config)
        names, keys = DEFORMABLE_DETR, ("logits", "pred_boxes")
    else:
        backbone = transformers.ResNetConfig(out_features=stages)
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone, use_timm_backbone=False, num_labels=133
        )
        theirs = transformers.Mask2FormerForUniversalSegmentation(config)
        names, keys = MASK2FORMER, ("class_queries_logits", "masks_queries_logits")
    left = theirs.load_state_dict(renamed(model.state_dict(), names), strict=False)
    missing = [
        key for key in left.missing_keys if "num_batches_tracked" not in key and "criterion" not in key
    ]
    if missing or left.unexpected_keys:
        raise ValueError(f"{name}: names of this transformers differ: {missing} {left.unexpected_keys}")
    theirs.eval().requires_grad_(False).to(next(model.parameters()).device)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long, device=pixels.device)
        found = theirs(pixel_values=pixels, pixel_mask=mask)
        return found[keys[0]], found[keys[1]]

    return forward
