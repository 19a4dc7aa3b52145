"""What kind of model a state dict belongs to, by its names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# telling names, most particular first: models of this package's families
DETECTORS = (
    ("a Mask2Former", r"^sem_seg_head\.predictor\.(query_feat|static_query)"),
    ("a MaskFormer", r"^sem_seg_head\.predictor\."),
    ("a DETR for segmentation", r"^(mask_head\.lay1|bbox_attention\.k_linear)\."),
    ("a DINO", r"^transformer\.(enc_out_class_embed\.|level_embeds$)"),
    ("a Deformable DETR", r"^transformer\.level_embed$"),
    ("a DETR", r"^transformer\.decoder\.layers\.\d+\.multihead_attn\."),
)
OTHERS = (
    ("an mmdetection model", r"^(bbox|panoptic|rpn|roi|decode)_head\."),
    ("an ultralytics (YOLO) model", r"^model\.\d+\.(conv|bn|cv\d|m)\."),
    (
        "a Hugging Face transformers model",
        r"^(model\.)?(backbone\.conv_encoder|encoder\.layers\.0\.self_attn\.q_proj|pixel_level_module)",
    ),
    ("a torchvision ResNet classifier", r"^fc\.weight$"),
    ("a ResNet backbone", r"^(layer4|res5)\.0\.conv1\.weight$"),
    ("a Swin", r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"),
)
KNOWN = tuple((kind, re.compile(pattern)) for kind, pattern in (*DETECTORS, *OTHERS))


def known_kind(names: Iterable[str]) -> str | None:
    """Which kind of model a state dict with these names belongs to; None for an unknown one."""
    names = list(names)
    kinds = (kind for kind, pattern in KNOWN if any(pattern.search(name) for name in names))
    return next(kinds, None)


def describe(names: Iterable[str]) -> str:
    """As `known_kind`, for messages."""
    return known_kind(names) or "an unknown model"


def is_detector(kind: str) -> bool:
    """Whether a kind is one of this package's families."""
    return any(kind == name for name, _ in DETECTORS)
