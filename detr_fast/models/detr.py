"""DETR: end-to-end object detection with transformers (Carion et al. 2020)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detr_fast.masks import resize_masks
from detr_fast.models.backbones import (
    BACKBONES,
    backbone_in,
    build_body,
    count_modules,
    features_of,
    size_multiple,
)
from detr_fast.models.common import (
    MLP,
    Config,
    ModelConfig,
    check_dimensions,
    check_multiple,
    no_padding,
    official_options,
    pixels_and_mask,
)
from detr_fast.models.position_encoding import PositionEncodingLearned, PositionEncodingSine
from detr_fast.models.transformer import ACTIVATIONS, Transformer
from detr_fast.structures import PaddedImages, Predictions

POSITION_EMBEDDINGS = {"sine": PositionEncodingSine, "learned": PositionEncodingLearned}


@dataclass(frozen=True)
class DETRConfig(ModelConfig):
    """The sizes of a DETR; names and defaults are those of the official options.

    The shapes of weights determine all but nheads, dropout, activation, dilation and aux_loss.

    Args:
        backbone: a ResNet, a Swin, or "conv_stem", which needs no pre-trained weights.
        num_classes: the largest category id + 1, "no object" not counted.
        dilation: stride 16 instead of 32 in the last backbone stage ("DC5").
        pre_norm: layers normalise their input rather than their output.
        aux_loss: predictions of all decoder layers rather than of the last alone.
    """

    model: ClassVar[str] = "DETR"

    backbone: str = "resnet50"
    dilation: bool = False
    position_embedding: str = "sine"
    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: str = "relu"
    pre_norm: bool = False
    num_queries: int = 100
    num_classes: int = 91
    aux_loss: bool = True

    def __post_init__(self) -> None:
        check_dimensions(
            self,
            {"backbone": BACKBONES, "position_embedding": POSITION_EMBEDDINGS, "activation": ACTIVATIONS},
            ("dec_layers",),
            ("enc_layers",),
        )
        check_multiple(self, "hidden_dim", 4, " for the positions")

    @classmethod
    def from_official_args(cls: type[Config], args: Any, num_classes: int = 91) -> Config:
        """From the options of an official training run.

        Args:
            args: a namespace or mapping, as official training checkpoints carry it.
            num_classes: not among them; 91 for COCO, 250 for COCO panoptic.
        """
        return cls(**{"num_classes": num_classes, **official_options(cls, args)})

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "backbone": overrides.get("backbone") or backbone_in(state),
            "position_embedding": "learned" if "backbone.1.row_embed.weight" in state else "sine",
            "hidden_dim": state["input_proj.weight"].shape[0],
            "enc_layers": count_modules(state, "transformer.encoder.layers"),
            "dec_layers": count_modules(state, "transformer.decoder.layers"),
            "dim_feedforward": state["transformer.decoder.layers.0.linear2.weight"].shape[1],
            "pre_norm": "transformer.encoder.norm.weight" in state,
            "num_queries": state["query_embed.weight"].shape[0],
            "num_classes": state["class_embed.weight"].shape[0] - 1,
        }


class Stages(NamedTuple):
    """What a DETR computes before its heads.

    Args:
        features: of the backbone, finest first.
        projected, memory: [B, C, h, w], the last features with C channels, and after the encoder.
        mask: [B, h, w] bool, True = padding; None where nothing is padded.
        hs: [L, B, Q, C], the outputs of the decoder layers.
    """

    features: list[Tensor]
    projected: Tensor
    mask: Tensor | None
    memory: Tensor
    hs: Tensor


class DETR(nn.Module):
    """A convolutional backbone, a transformer, and for each object query a class and a box.

    Modules carry the official names, so official state dicts fit as they are.

    Args:
        backbone_weights: a torchvision ResNet or Microsoft Swin file to start the backbone from.
    """

    def __init__(self, config: DETRConfig, *, backbone_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        channels = config.hidden_dim
        body = build_body(config.backbone, config.dilation, backbone_weights)
        position_encoding = POSITION_EMBEDDINGS[config.position_embedding](channels)
        self.backbone = nn.ModuleList([nn.Sequential(OrderedDict(body=body)), position_encoding])
        self.size_multiple = size_multiple(body)
        self.feature_channels = body.channels
        self.input_proj = nn.Conv2d(body.channels[-1], channels, kernel_size=1)
        self.transformer = Transformer(
            channels,
            config.nheads,
            config.enc_layers,
            config.dec_layers,
            config.dim_feedforward,
            config.dropout,
            config.activation,
            config.pre_norm,
        )
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.class_embed = nn.Linear(channels, config.num_classes + 1)
        self.bbox_embed = MLP(channels, channels, 4, layers=3)

    def forward(self, images: PaddedImages | Tensor | Sequence[Tensor]) -> Predictions:
        """Classes and boxes of every query.

        Args:
            images: a padded batch, a [B, 3, H, W] tensor without padding, or [3, H_b, W_b] tensors;
                normalised.

        Returns:
            Logits [L, B, Q, K + 1] and boxes [L, B, Q, 4], relative to each image without its padding.
        """
        return self.heads(self.stages(images).hs)

    def stages(self, images: PaddedImages | Tensor | Sequence[Tensor]) -> Stages:
        """Runs everything before the heads on `images`."""
        pixels, mask = pixels_and_mask(images, self.size_multiple)
        cnn, position_encoding = self.backbone
        features = features_of(cnn, pixels, mask)
        projected = self.input_proj(features[-1])
        queries = self.query_embed.weight
        mask = None if mask is None else resize_masks(mask, projected.shape[2:])
        position = position_encoding(no_padding(projected) if mask is None else mask)
        hs, memory = self.transformer(projected, queries, position.to(queries.dtype), mask)
        return Stages(features, projected, mask, memory, hs)

    def heads(self, hs: Tensor) -> Predictions:
        """Classes and boxes from decoder outputs [L, B, Q, C]."""
        if not self.config.aux_loss:
            hs = hs[-1:]
        boxes = self.bbox_embed(hs)
        # coordinates keep at least float32: bfloat16 knows 256 places between 0.5 and 1
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).sigmoid()
        return Predictions(self.class_embed(hs), boxes)
