"""Mask2Former: masked-attention mask transformer for universal image segmentation (Cheng et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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
from detr_fast.models.pixel_decoder import MSDeformAttnPixelDecoder
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.models.transformer import MultiheadAttention
from detr_fast.structures import MaskPredictions


@dataclass(frozen=True)
class Mask2FormerConfig(MaskClassifierConfig):
    """The sizes of a Mask2Former; defaults are the official ones for COCO panoptic.

    The shapes of weights determine all but enc_n_points (which the number of heads rests on), dropout and
    pre_norm.

    Args:
        dec_layers: of the decoder; there is one prediction more, from the queries before any layer.
        enc_n_points: sampled points of each head and level in the pixel decoder.
    """

    model: ClassVar[str] = "Mask2Former"

    enc_layers: int = 6
    dec_layers: int = 9
    enc_dim_feedforward: int = 1024
    dropout: float = 0.0
    enc_n_points: int = 4

    positive: ClassVar[tuple[str, ...]] = (*MaskClassifierConfig.positive, "enc_layers", "enc_n_points")

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        levels, conv_dim = state[f"{PIXEL_DECODER}transformer.level_embed"].shape
        encoder = f"{PIXEL_DECODER}transformer.encoder.layers"
        feed_forward = f"{PREDICTOR}transformer_ffn_layers"
        samples = state[f"{encoder}.0.self_attn.attention_weights.bias"].shape[0]
        sizes = super().sizes_in(state, overrides)
        projected = f"{PREDICTOR}input_proj.0.weight" in state
        return {
            **sizes,
            "nheads": samples // (levels * overrides.get("enc_n_points", cls.enc_n_points)),
            "enc_layers": count_modules(state, encoder),
            "dec_layers": count_modules(state, feed_forward),
            "enc_dim_feedforward": state[f"{encoder}.0.linear1.weight"].shape[0],
            "dim_feedforward": state[f"{feed_forward}.0.linear1.weight"].shape[0],
            "enforce_input_projection": projected and conv_dim == sizes["hidden_dim"],
        }


class Mask2Former(MaskClassifier):
    """A backbone, a deformable pixel decoder, and queries that attend to what their last mask covers.

    Modules carry the official names, so official state dicts fit as they are.

    Args:
        backbone_weights: a pre-trained ResNet or Swin file to start the backbone from.
    """

    size_multiple = 32

    def __init__(self, config: Mask2FormerConfig, *, backbone_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_body(config.backbone, False, backbone_weights, detectron2=True)
        pixel_decoder = MSDeformAttnPixelDecoder(
            self.backbone.channels,
            config.conv_dim,
            config.mask_dim,
            config.nheads,
            config.enc_layers,
            config.enc_dim_feedforward,
            config.dropout,
            config.enc_n_points,
        )
        predictor = MaskedAttentionDecoder(config, levels=len(self.backbone.channels) - 1)
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": pixel_decoder, "predictor": predictor})


class MaskedAttentionDecoder(MaskPredictor):
    """Queries -> classes and masks (section 3.2): each layer attends where the last prediction's mask is.

    Layer i attends to level i % N of the pixel decoder, coarsest first.
    """

    def __init__(self, config: Mask2FormerConfig, levels: int) -> None:
        channels, count = config.hidden_dim, config.dec_layers
        super().__init__(channels, config.mask_dim, config.num_classes)
        attention = (channels, config.nheads, config.pre_norm)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(*attention) for _ in range(count)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(*attention) for _ in range(count)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(channels, config.dim_feedforward, config.pre_norm) for _ in range(count)
        )
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(config.num_queries, channels)
        self.query_embed = nn.Embedding(config.num_queries, channels)
        self.level_embed = nn.Embedding(levels, channels)
        self.input_proj = nn.ModuleList(
            input_projection(config.conv_dim, channels, config.enforce_input_projection)
            for _ in range(levels)
        )
        self.position = PositionEncodingSine(channels)

    def forward(self, levels: Sequence[Tensor], mask_features: Tensor, all_layers: bool) -> MaskPredictions:
        """Queries -> classes and masks.

        Args:
            levels: [B, C, h, w] each, coarsest first.
            mask_features: [B, M, H, W].
            all_layers: the predictions before the first and after each layer, rather than after the last
                alone.
        """
        values, keys = self.values_and_keys(levels)
        resized = [resize_features(mask_features, x.shape[-2:]) for x in levels]
        query_position = self.query_embed.weight
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        states = [self.decoder_norm(x)]
        embeddings = [self.mask_embed(states[0])]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            n = i % len(levels)
            attend = inside(embeddings[-1], resized[n])
            x = cross_attention(x, query_position, values[n], keys[n], attend)
            x = feed_forward(self_attention(x, query_position))
            states.append(self.decoder_norm(x))
            embeddings.append(self.mask_embed(states[-1]))
        first = 0 if all_layers else -1
        return self.predict(torch.stack(states[first:]), torch.stack(embeddings[first:]), mask_features)

    def values_and_keys(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """[B, S, C] of each level: its embedding is part of both, positions of the keys alone."""
        values, keys = [], []
        for x, project, level in zip(levels, self.input_proj, self.level_embed.weight, strict=True):
            position = self.position(no_padding(x)).to(x.dtype)
            value = project(x).flatten(2).transpose(1, 2) + level
            values.append(value)
            keys.append(value + position.flatten(2).transpose(1, 2))
        return values, keys


def resize_features(mask_features: Tensor, size: Sequence[int]) -> Tensor:
    """[B, M, H, W] -> [B, M, S], a constant.

    Masks are products with these features, and resizing is linear as well: products with resized features are
    resized masks. So a layer's attention takes no mask at full resolution.
    """
    return F.interpolate(mask_features.detach(), size=list(size), mode="bilinear").flatten(2)


def inside(embeddings: Tensor, features: Tensor) -> Tensor:
    """Where queries may attend: inside their mask, or everywhere if it is empty.

    embeddings [B, Q, M], features [B, M, S] -> [B, Q, S] bool.
    """
    attend = ~(embeddings.detach() @ features < 0)
    return attend | ~attend.any(-1, keepdim=True)


class Residual(nn.Module):
    """x plus an update of it, and a norm: of the sum or, normalising first, of what the update sees."""

    def __init__(self, channels: int, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pre_norm = pre_norm

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre_norm else x

    def after(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update if self.pre_norm else self.norm(x + update)


class CrossAttention(Residual):
    """From queries to the positions of one level."""

    def __init__(self, channels: int, heads: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.multihead_attn = MultiheadAttention(channels, heads)
        nn.init.xavier_uniform_(self.multihead_attn.out_proj.weight)

    def forward(self, x: Tensor, position: Tensor, value: Tensor, key: Tensor, attend: Tensor) -> Tensor:
        """x [B, Q, C]; position [Q, C]; value, key [B, S, C]; attend [B, Q, S] bool -> [B, Q, C]."""
        return self.after(x, self.multihead_attn(self.before(x) + position, key, value, attend))


class SelfAttention(Residual):
    """Among queries."""

    def __init__(self, channels: int, heads: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.self_attn = MultiheadAttention(channels, heads)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [B, Q, C], position [Q, C] -> [B, Q, C]."""
        y = self.before(x)
        at = y + position
        return self.after(x, self.self_attn(at, at, y))


class FeedForward(Residual):
    """Two linear layers."""

    def __init__(self, channels: int, hidden: int, pre_norm: bool) -> None:
        super().__init__(channels, pre_norm)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x, self.linear2(F.relu_(self.linear1(self.before(x)))))
