"""From images to the feature levels of deformable transformers, with the official names."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.masks import resize_masks
from detr_fast.models.backbones import count_modules, features_of, size_multiple
from detr_fast.models.common import MLP, pixels_and_mask
from detr_fast.models.conv_stem import ChannelNorm, ConvStem
from detr_fast.models.deformable_transformer import Levels
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.structures import PaddedImages

GROUPS = 32  # of the norms after the input projections


def transformer_sizes(state: Mapping[str, Tensor], nheads: int) -> dict[str, Any]:
    """The fields that the shapes of a deformable transformer's weights determine."""
    levels, hidden_dim = state["transformer.level_embed"].shape
    attention = {"enc_n_points": "encoder.layers.0.self", "dec_n_points": "decoder.layers.0.cross"}
    return {
        **{
            name: len(state[f"transformer.{layer}_attn.attention_weights.bias"]) // (nheads * levels)
            for name, layer in attention.items()
        },
        "hidden_dim": hidden_dim,
        "enc_layers": count_modules(state, "transformer.encoder.layers"),
        "dec_layers": count_modules(state, "transformer.decoder.layers"),
        "dim_feedforward": state["transformer.decoder.layers.0.linear2.weight"].shape[1],
        "num_feature_levels": levels,
    }


def focal_heads(channels: int, num_classes: int) -> tuple[nn.Linear, MLP]:
    """A class head that starts at 0.01, the prior of the focal loss, and a box head that starts at 0."""
    class_head = nn.Linear(channels, num_classes)
    nn.init.constant_(class_head.bias, -math.log(99))
    box_head = MLP(channels, channels, 4, layers=3)
    for parameter in box_head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return class_head, box_head


class MultiScaleModel(nn.Module):
    """A backbone and projections of its last stages, and of further levels, to C channels.

    Args:
        body: the backbone, with its `channels`.
        stages: how many of the last stages are levels.
        levels: feature levels N; each one beyond `stages` is a convolution of stride 2, the first of them of
            the last stage, others of the level before.
        channels: C.
        position_encoding: of each level.
        nested: whether the backbone is called `body` inside another module, as torchvision's are.
    """

    def __init__(
        self,
        body: Any,
        stages: int,
        levels: int,
        channels: int,
        position_encoding: PositionEncodingSine,
        nested: bool = True,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.size_multiple = size_multiple(body)
        inputs = body.channels[-stages:]
        convolutions = [nn.Conv2d(n, channels, kernel_size=1) for n in inputs]
        for n in range(len(inputs), levels):
            width = body.channels[-1] if n == len(inputs) else channels
            convolutions.append(nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1))
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.get_parameter("bias"))
        # the official norm sees all of a map, padding included
        own = isinstance(body, ConvStem)
        self.input_proj = nn.ModuleList(
            nn.Sequential(convolution, ChannelNorm(channels) if own else nn.GroupNorm(GROUPS, channels))
            for convolution in convolutions
        )
        cnn = nn.Sequential(OrderedDict(body=body)) if nested else body
        self.backbone = nn.ModuleList([cnn, position_encoding])

    def feature_levels(
        self, images: PaddedImages | Tensor | Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Levels]:
        """Projected features and position encodings [B, C, h, w] of each level, and the levels' geometry."""
        pixels, padding = pixels_and_mask(images, self.size_multiple)
        cnn, position_encoding = self.backbone
        stages = features_of(cnn, pixels, padding)[-self.stages :]
        features = [project(x) for project, x in zip(self.input_proj, stages, strict=False)]
        for n in range(len(features), len(self.input_proj)):
            features.append(self.input_proj[n](stages[-1] if n == len(stages) else features[-1]))
        if padding is None:
            masks = [x.new_zeros((x.shape[0], *x.shape[2:]), dtype=torch.bool) for x in features]
        else:
            masks = [resize_masks(padding, x.shape[2:]) for x in features]
        positions = [position_encoding(m).to(x.dtype) for m, x in zip(masks, features, strict=True)]
        return features, positions, Levels.from_masks(masks, padded=padding is not None)
