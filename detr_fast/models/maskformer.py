"""MaskFormer: per-pixel classification is not all you need for semantic segmentation (Cheng et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from detr_fast.models.backbones import build_body, count_modules
from detr_fast.models.common import no_padding
from detr_fast.models.mask_classifier import (
    PIXEL_DECODER,
    PREDICTOR,
    MaskClassifier,
    MaskClassifierConfig,
    MaskPredictor,
    input_projection,
)
from detr_fast.models.pixel_decoder import TransformerEncoderPixelDecoder
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.models.transformer import Transformer
from detr_fast.structures import MaskPredictions


@dataclass(frozen=True)
class MaskFormerConfig(MaskClassifierConfig):
    """The sizes of a MaskFormer; defaults are the official ones for COCO panoptic.

    The shapes of weights determine all but nheads and dropout.

    Args:
        enc_layers: of the pixel decoder's transformer encoder; with none, as in the official semantic models,
            the decoder attends to the backbone's last stage.
    """

    model: ClassVar[str] = "MaskFormer"

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        encoder = f"{PIXEL_DECODER}transformer.encoder.layers"
        decoder = f"{PREDICTOR}transformer.decoder.layers"
        sizes = {
            **super().sizes_in(state, overrides),
            "enc_layers": count_modules(state, encoder),
            "dec_layers": count_modules(state, decoder),
            "dim_feedforward": state[f"{decoder}.0.linear1.weight"].shape[0],
            "pre_norm": f"{PREDICTOR}transformer.encoder.norm.weight" in state,
        }
        if sizes["enc_layers"]:
            sizes["enc_dim_feedforward"] = state[f"{encoder}.0.linear1.weight"].shape[0]
        if f"{PREDICTOR}input_proj.weight" in state:
            inputs = state[f"{PREDICTOR}input_proj.weight"].shape[1]
            sizes["enforce_input_projection"] = inputs == sizes["hidden_dim"]
        return sizes


class MaskFormer(MaskClassifier):
    """A backbone, a feature pyramid for masks, and the transformer decoder of DETR for queries.

    Modules carry the official names, so official state dicts fit as they are.

    Args:
        backbone_weights: a pre-trained ResNet or Swin file to start the backbone from.
    """

    def __init__(self, config: MaskFormerConfig, *, backbone_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_body(config.backbone, False, backbone_weights, detectron2=True)
        pixel_decoder = TransformerEncoderPixelDecoder(
            self.backbone.channels,
            config.conv_dim,
            config.mask_dim,
            config.nheads,
            config.enc_layers,
            config.enc_dim_feedforward,
            config.dropout,
            config.pre_norm,
        )
        predictor = QueryDecoder(config, pixel_decoder.channels)
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": pixel_decoder, "predictor": predictor})


class QueryDecoder(MaskPredictor):
    """Queries -> classes and masks (section 3.3) through DETR's decoder.

    Args:
        inputs: channels of the map that it attends to.
    """

    def __init__(self, config: MaskFormerConfig, inputs: int) -> None:
        channels = config.hidden_dim
        super().__init__(channels, config.mask_dim, config.num_classes)
        self.input_proj = input_projection(inputs, channels, config.enforce_input_projection)
        self.transformer = Transformer(
            channels,
            config.nheads,
            encoder_layers=0,
            decoder_layers=config.dec_layers,
            hidden=config.dim_feedforward,
            dropout=config.dropout,
            pre_norm=config.pre_norm,
        )
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.position = PositionEncodingSine(channels)

    def forward(self, memory: Tensor, mask_features: Tensor, all_layers: bool) -> MaskPredictions:
        """Queries -> classes and masks.

        Args:
            memory: [B, C, h, w].
            mask_features: [B, M, H, W].
            all_layers: the predictions after each layer, rather than after the last alone.
        """
        features = self.input_proj(memory)
        position = self.position(no_padding(features)).to(features.dtype)
        states, _ = self.transformer(features, self.query_embed.weight, position)
        if not all_layers:
            states = states[-1:]
        return self.predict(states, self.mask_embed(states), mask_features)
