"""The models of transformers 5 with the weights of ours: parameters renamed, nothing else."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite import import_peer
from detr_fast.models import DeformableDETR

Names = Sequence[tuple[str, str]]

_NORM = (r"\.norm\.", ".normalization.")
DEFORMABLE_DETR: Names = (
    (r"^backbone\.0\.body\.conv1\.", "model.backbone.model.embedder.embedder.convolution."),
    (r"^backbone\.0\.body\.bn1\.", "model.backbone.model.embedder.embedder.normalization."),
    (r"^backbone\.0\.body\.layer(\d)\.(\d+)\.", r"model.backbone.model.encoder.stages.{\1-1}.layers.\2."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"(stages.*)\.conv(\d)\.", r"\1.layer.{\2-1}.convolution."),
    (r"(stages.*)\.bn(\d)\.", r"\1.layer.{\2-1}.normalization."),
    (r"(encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.self_attn.o_proj."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"^transformer\.", "model."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^input_proj\.", "model.input_proj."),
)
_PIXELS = "model.pixel_level_module."
_QUERIES = "model.transformer_module."
MASK2FORMER: Names = (
    (r"^backbone\.stem\.conv1\.(norm\.)?", _PIXELS + r"encoder.embedder.embedder.convolution.\1"),
    (r"^backbone\.res(\d)\.(\d+)\.", _PIXELS + r"encoder.encoder.stages.{\1-2}.layers.\2."),
    (r"\.shortcut\.", ".shortcut.convolution."),
    (r"(stages.*)\.conv(\d)\.", r"\1.layer.{\2-1}.convolution."),
    (r"\.convolution\.norm\.", ".normalization."),
    (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", _PIXELS + "decoder."),
    (r"\.input_proj\.", ".input_projections."),
    (r"\.mask_features\.", ".mask_projection."),
    (r"\.(adapter|layer)_(\d)\.norm\.", r".\1_\2.1."),
    (r"\.(adapter|layer)_(\d)\.weight", r".\1_\2.0.weight"),
    (r"(decoder\.encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"^sem_seg_head\.predictor\.class_embed\.", "class_predictor."),
    (r"^sem_seg_head\.predictor\.", _QUERIES),
    (r"\.query_feat\.", ".queries_features."),
    (r"\.query_embed\.", ".queries_embedder."),
    (r"\.decoder_norm\.", ".decoder.layernorm."),
    (r"\.mask_embed\.layers\.(\d)\.", r".decoder.mask_predictor.mask_embedder.\1.0."),
    (
        r"\.transformer_(cross|self)_attention_layers\.(\d+)\.norm\.",
        r".decoder.layers.\2.\1_attn_layer_norm.",
    ),
    (r"\.transformer_(cross|self)_attention_layers\.(\d+)\.\w+\.", r".decoder.layers.\2.\1_attn."),
    (r"\.transformer_ffn_layers\.(\d+)\.norm\.", r".decoder.layers.\1.final_layer_norm."),
    (r"\.transformer_ffn_layers\.(\d+)\.", r".decoder.layers.\1."),
)


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The state dict under the other names, with the projections of self-attention split in three."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\{(\d)-(\d)\}", lambda m: str(int(m[1]) - int(m[2])), name)
        if ".self_attn.in_proj_" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace("in_proj_", f"{part}_proj.")] = piece
        else:
            result[name] = tensor
    return result


def why_not() -> str | None:
    """Why they cannot run here, or None."""
    module, missing = import_peer("transformers")
    if module is None or int(module.__version__.partition(".")[0]) >= 5:
        return missing
    return f"transformers {module.__version__}: parameters are known by the names of version 5"


def forward_of(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pixels [B, 3, H, W] -> the last layer's classes and boxes or masks; on the device of `model`.

    Raises ImportError without transformers, ValueError where its names differ from those of version 5.
    """
    transformers: Any = importlib.import_module("transformers")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    theirs: nn.Module
    if isinstance(model, DeformableDETR):
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
    ours_alone = ("num_batches_tracked", "criterion")
    missing = [key for key in left.missing_keys if not any(part in key for part in ours_alone)]
    if missing or left.unexpected_keys:
        raise ValueError(f"names of this transformers differ: {missing} {left.unexpected_keys}")
    theirs.eval().requires_grad_(False).to(next(model.parameters()).device)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long, device=pixels.device)
        found = theirs(pixel_values=pixels, pixel_mask=mask)
        return found[keys[0]], found[keys[1]]

    return forward
