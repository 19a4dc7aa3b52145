"""Every model of transformers that is served, small and random: built from a configuration, no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

SIZE = 64
WIDTH = 32
BATCH = 2

STAGES: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
RESNET, RT_BACKBONE = hf.ResNetConfig(**STAGES), hf.RTDetrResNetConfig(**STAGES)


def swin(*stages: str) -> hf.SwinConfig:
    return hf.SwinConfig(
        image_size=SIZE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=list(stages),
    )


SWIN = swin("stage1", "stage2", "stage3", "stage4")
SWIN_3 = swin("stage2", "stage3", "stage4")
BERT = hf.BertConfig(
    hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=WIDTH, vocab_size=1100
)
DETR = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "num_queries": 12,
    "num_feature_levels": 3,  # a level of 1 x 1 makes the gradients of its group norm noise
}
RT = {
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [WIDTH] * 3,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": 12,
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}


def hgnet(*stages: str) -> hf.HGNetV2Config:
    return hf.HGNetV2Config(
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 8, 16, 16],
        stage_in_channels=[8, 8, 8, 16],
        stage_mid_channels=[4, 4, 8, 8],
        stage_out_channels=[8, 8, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=list(stages),
    )


HGNET = hgnet("stage2", "stage3", "stage4")
HGNET_4 = hgnet("stage1", "stage2", "stage3", "stage4")


def deformable_detr(**options: Any) -> nn.Module:
    config = hf.DeformableDetrConfig(backbone_config=RESNET, two_stage_num_proposals=12, **DETR, **options)
    return hf.DeformableDetrForObjectDetection(config)


def rt_detr(**options: Any) -> nn.Module:
    return hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=RT_BACKBONE, **(RT | options)))


def rt_detr_v2(**options: Any) -> nn.Module:
    return hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=RT_BACKBONE, **(RT | options)))


def d_fine(**options: Any) -> nn.Module:
    return hf.DFineForObjectDetection(hf.DFineConfig(backbone_config=HGNET, **(RT | options)))


def deimv2(**options: Any) -> nn.Module:
    return hf.Deimv2ForObjectDetection(hf.Deimv2Config(backbone_config=HGNET, **(RT | options)))


def lw_detr(**options: Any) -> nn.Module:
    backbone = hf.LwDetrViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        pretrain_image_size=SIZE,
        patch_size=16,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    return hf.LwDetrForObjectDetection(hf.LwDetrConfig(backbone_config=backbone, **GROUPED, **options))


def rf_detr(**options: Any) -> nn.Module:
    return hf.RfDetrForObjectDetection(rf_detr_config(**options))


def rf_detr_segm(**options: Any) -> nn.Module:
    return hf.RfDetrForInstanceSegmentation(rf_detr_config(**options))


def rf_detr_config(**options: Any) -> hf.RfDetrConfig:
    backbone = hf.RfDetrDinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=16,
        num_windows=2,
        out_features=["stage1", "stage2"],
    )
    return hf.RfDetrConfig(backbone_config=backbone, **GROUPED, **options)


GROUPED = {
    "d_model": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "num_queries": 12,
    "group_detr": 2,
    "dropout": 0.0,
    "projector_scale_factors": [1.0, 2.0],
}


def grounding_dino(**options: Any) -> nn.Module:
    config = hf.GroundingDinoConfig(
        backbone_config=SWIN_3, text_config=BERT, max_text_len=16, **DETR, **options
    )
    return hf.GroundingDinoForObjectDetection(config)


def mm_grounding_dino(**options: Any) -> nn.Module:
    config = hf.MMGroundingDinoConfig(
        backbone_config=SWIN_3, text_config=BERT, max_text_len=16, **DETR, **options
    )
    return hf.MMGroundingDinoForObjectDetection(config)


def mask2former(**options: Any) -> nn.Module:
    config = hf.Mask2FormerConfig(backbone_config=SWIN, **MASKS, **options)
    return hf.Mask2FormerForUniversalSegmentation(config)


MASKS = {
    "hidden_dim": WIDTH,
    "encoder_feedforward_dim": WIDTH,
    "dim_feedforward": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_queries": 12,
    "train_num_points": 64,
}


def maskformer(**options: Any) -> nn.Module:
    decoder = hf.DetrConfig(
        d_model=WIDTH, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=WIDTH, num_queries=12
    )
    config = hf.MaskFormerConfig(
        backbone_config=SWIN,
        decoder_config=decoder,
        fpn_feature_size=WIDTH,
        mask_feature_size=WIDTH,
        **options,
    )
    return hf.MaskFormerForInstanceSegmentation(config)


def oneformer(**options: Any) -> nn.Module:
    config = {
        "backbone_config": SWIN,
        "conv_dim": 64,
        "mask_dim": 64,
        "hidden_dim": 64,  # its text encoder has a head for each 64 channels
        "text_encoder_width": 64,
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 200,
        "text_encoder_context_length": 8,
        "text_encoder_n_ctx": 4,
        "task_seq_len": 8,
    }
    return hf.OneFormerForUniversalSegmentation(hf.OneFormerConfig(**(MASKS | config | options)))


def omdet_turbo() -> nn.Module:
    text = hf.CLIPTextConfig(
        vocab_size=200,
        hidden_size=WIDTH // 2,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=8,
        eos_token_id=199,
    )
    config = hf.OmDetTurboConfig(
        backbone_config=SWIN_3,
        text_config=text,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=WIDTH // 2,
        text_projection_out_dim=WIDTH // 2,
        task_encoder_hidden_dim=WIDTH,
        class_embed_dim=WIDTH // 2,
        num_queries=12,
        encoder_hidden_dim=WIDTH,
        vision_features_channels=[WIDTH] * 3,
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=4,
        encoder_dim_feedforward=WIDTH,
        decoder_hidden_dim=WIDTH,
        decoder_num_heads=4,
        decoder_num_layers=2,
        decoder_dim_feedforward=WIDTH,
    )
    return hf.OmDetTurboForObjectDetection(config)


def pp_doclayout_v2() -> nn.Module:
    order = {
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "coordinate_size": 6,
        "shape_size": 4,
        "relation_bias_embed_dim": 4,
        "global_pointer_head_size": 8,
    }
    config = hf.PPDocLayoutV2Config(
        backbone_config=HGNET,
        reading_order_config=order,
        class_thresholds=[0.5] * 3,
        class_order=[0, 1, 2],
        num_labels=3,
        **RT,
    )
    return hf.PPDocLayoutV2ForObjectDetection(config)


def pp_doclayout_v3() -> nn.Module:
    config = hf.PPDocLayoutV3Config(
        backbone_config=HGNET_4,
        x4_feat_dim=8,
        mask_feature_channels=[8, 8],
        num_prototypes=8,
        global_pointer_head_size=8,
        **RT,
    )
    return hf.PPDocLayoutV3ForObjectDetection(config)


def pp_doclayout_v4() -> nn.Module:
    config = hf.PPDocLayoutV4Config(
        backbone_config=HGNET, global_pointer_head_size=8, hidden_size=WIDTH, **RT
    )
    return hf.PPDocLayoutV4ForObjectDetection(config)


def inputs(name: str) -> dict[str, Tensor]:
    """Two random images, the second padded at the bottom and right, and what else the model asks for."""
    mask = torch.ones(BATCH, SIZE, SIZE, dtype=torch.long)
    mask[1, 48:] = 0
    mask[1, :, 40:] = 0
    images = torch.randn(BATCH, 3, SIZE, SIZE) * mask[:, None]
    given = {"pixel_values": images, "pixel_mask": mask}
    if name.endswith("grounding_dino"):
        tokens = torch.tensor([[101, 5, 1012, 6, 7, 1012, 102]]).expand(BATCH, -1).clone()
        given |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        given["token_type_ids"] = torch.zeros_like(tokens)
    elif name == "oneformer":
        given["task_inputs"] = torch.randint(0, 200, (BATCH, 8))
    elif name == "omdet_turbo":
        del given["pixel_mask"]
        words = torch.randint(1, 199, (BATCH * 3, 6))
        words[:, -1] = 199
        given |= {"classes_input_ids": words, "classes_attention_mask": torch.ones_like(words)}
        given |= {"tasks_input_ids": words[:BATCH], "tasks_attention_mask": torch.ones_like(words[:BATCH])}
        given["classes_structure"] = torch.tensor([3] * BATCH)
    return given


def one_level(options: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in DETR.items() if key != "num_feature_levels"}
    return {"backbone_config": RESNET} | config | options


def detr(**options: Any) -> nn.Module:
    return hf.DetrForObjectDetection(hf.DetrConfig(**one_level(options)))


def table_transformer(**options: Any) -> nn.Module:
    return hf.TableTransformerForObjectDetection(hf.TableTransformerConfig(**one_level(options)))


def conditional_detr(**options: Any) -> nn.Module:
    return hf.ConditionalDetrForObjectDetection(hf.ConditionalDetrConfig(**one_level(options)))


def yolos(**options: Any) -> nn.Module:
    config = hf.YolosConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=WIDTH,
        image_size=[SIZE, SIZE],
        num_detection_tokens=12,
        **options,
    )
    return hf.YolosForObjectDetection(config)


def targets(classes: int = 2) -> list[dict[str, Tensor]]:
    """Labels of two images: some boxes, and none."""
    boxes = torch.rand(5, 4) * torch.tensor([0.5, 0.5, 0.3, 0.3]) + 0.1
    some = {"class_labels": torch.randint(0, classes, (5,)), "boxes": boxes}
    return [some, {key: x[:0] for key, x in some.items()}]


LOSSES: dict[str, dict[str, Any]] = {
    "detr": {"auxiliary_loss": True, "num_labels": 5},
    "table_transformer": {"auxiliary_loss": True, "num_labels": 5},
    "conditional_detr": {"auxiliary_loss": True, "num_labels": 5},
    "yolos": {"num_labels": 5},
    "deformable_detr": {"auxiliary_loss": True, "num_labels": 5},
    "rt_detr": {"num_denoising": 4, "num_labels": 5},
    "rt_detr_v2": {"num_denoising": 4, "num_labels": 5},
    "d_fine": {"num_denoising": 4, "num_labels": 5},
    "deimv2": {"num_denoising": 4, "num_labels": 5},
    "lw_detr": {"num_labels": 5},
    "rf_detr": {"num_labels": 5},
    "grounding_dino": {"auxiliary_loss": True},
    "mm_grounding_dino": {"auxiliary_loss": True},
}
"""The models that have a set loss of boxes, with options that make much of it run."""

MODELS: dict[str, Callable[..., nn.Module]] = {
    build.__name__: build
    for build in (
        deformable_detr,
        rt_detr,
        rt_detr_v2,
        d_fine,
        deimv2,
        lw_detr,
        rf_detr,
        grounding_dino,
        mm_grounding_dino,
        omdet_turbo,
        pp_doclayout_v2,
        pp_doclayout_v3,
        pp_doclayout_v4,
        mask2former,
        oneformer,
    )
}
ONLY_LOSSES = {
    f.__name__: f for f in (detr, table_transformer, conditional_detr, yolos, maskformer, rf_detr_segm)
}
"""More models of which the loss is replaced."""


def build(name: str, **options: Any) -> nn.Module:
    """A random model away from its initial values, which put samples on pixel centres."""
    model = (MODELS | ONLY_LOSSES)[name](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
