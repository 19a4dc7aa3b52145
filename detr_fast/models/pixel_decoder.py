"""Pixel decoders: backbone features -> maps for the transformer and one fine map for the masks.

Neither of the two knows of padding: as in the official code, it takes part like any other pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.models.common import no_padding
from detr_fast.models.deformable_transformer import DeformableEncoder, Levels
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.models.transformer import Encoder, EncoderLayer, add

GROUPS = 32  # of every norm


class ConvNorm(nn.Conv2d):
    """A convolution that keeps the size, and a group norm instead of a bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        xavier_fill(self)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class FeaturePyramid(nn.Module):
    """The top-down path of a feature pyramid (Lin et al. 2017), down to the map that masks are read from.

    The n-th finest stage of the backbone joins through `adapter_n` and `layer_n`.

    Args:
        channels: of the backbone stages that join, finest first.
        kernel: of the last convolution.
        upsampling: of the coarser map, "nearest" or "bilinear".
    """

    def __init__(
        self, channels: Sequence[int], conv_dim: int, mask_dim: int, kernel: int, upsampling: str
    ) -> None:
        super().__init__()
        self.joining = len(channels)
        self.upsampling = upsampling
        for n, inputs in enumerate(channels, start=1):
            self.add_module(f"adapter_{n}", ConvNorm(inputs, conv_dim, 1))
            self.add_module(f"layer_{n}", ConvNorm(conv_dim, conv_dim, 3))
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, kernel, padding=kernel // 2)
        xavier_fill(self.mask_features)

    def top_down(self, features: Sequence[Tensor], y: Tensor) -> Tensor:
        """The stages that join, finest first, and the next coarser map y -> mask features."""
        for n in range(self.joining, 0, -1):
            lateral = self.get_submodule(f"adapter_{n}")(features[n - 1])
            y = add(lateral, F.interpolate(y, size=lateral.shape[-2:], mode=self.upsampling))
            y = F.relu_(self.get_submodule(f"layer_{n}")(y))
        return self.mask_features(y)


class MSDeformAttnPixelDecoder(FeaturePyramid):
    """Mask2Former's: a deformable encoder over all stages but the finest, which joins bilinearly."""

    def __init__(
        self,
        channels: Sequence[int],
        conv_dim: int,
        mask_dim: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        points: int,
    ) -> None:
        super().__init__(channels[:1], conv_dim, mask_dim, kernel=1, upsampling="bilinear")
        self.input_proj = nn.ModuleList(_projection(inputs, conv_dim) for inputs in reversed(channels[1:]))
        levels = len(self.input_proj)
        self.transformer = DeformableEncoder(conv_dim, heads, layers, hidden, dropout, "relu", levels, points)
        self.position = PositionEncodingSine(conv_dim)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features, finest first -> encoded levels, coarsest first, [B, C, h, w], and mask features."""
        inputs = [project(x) for project, x in zip(self.input_proj, reversed(features[1:]), strict=True)]
        masks = [no_padding(x) for x in inputs]
        positions = [self.position(mask).to(x.dtype) for mask, x in zip(masks, inputs, strict=True)]
        batch = features[0].shape[0]
        levels = Levels.from_masks([mask.expand(batch, -1, -1) for mask in masks], padded=False)
        memory = self.transformer.encode(inputs, positions, levels)
        sizes = [h * w for h, w in levels.shapes]
        # views that resizing and convolutions take for channels last
        encoded = [
            x.unflatten(1, hw).permute(0, 3, 1, 2)
            for x, hw in zip(memory.split(sizes, dim=1), levels.shapes, strict=True)
        ]
        return encoded, self.top_down(features, encoded[-1])


class TransformerEncoderPixelDecoder(FeaturePyramid):
    """MaskFormer's: a transformer encoder over the coarsest stage, then nearest upsampling.

    Args:
        layers: of the encoder; with none, the coarsest stage enters the pyramid as it is.
    """

    def __init__(
        self,
        channels: Sequence[int],
        conv_dim: int,
        mask_dim: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__(channels[:-1], conv_dim, mask_dim, kernel=3, upsampling="nearest")
        self.channels = conv_dim if layers else channels[-1]  # of the map for the transformer
        self.transformer: nn.ModuleDict | None = None
        if layers:
            self.input_proj = nn.Conv2d(channels[-1], conv_dim, 1)
            xavier_fill(self.input_proj)
            layer = (conv_dim, heads, hidden, dropout, "relu", pre_norm)
            norm = nn.LayerNorm(conv_dim) if pre_norm else None
            encoder = Encoder([EncoderLayer(*layer) for _ in range(layers)], norm)
            self.transformer = nn.ModuleDict({"encoder": encoder})
            for parameter in self.transformer.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
            self.position = PositionEncodingSine(conv_dim)
        self.add_module(f"layer_{len(channels)}", ConvNorm(self.channels, conv_dim, 3))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features, finest first -> the map for the transformer, as coarse as the last, and mask features."""
        memory = features[-1]
        if self.transformer is not None:
            x = self.input_proj(memory)
            position = self.position(no_padding(x)).to(x.dtype).flatten(2).transpose(1, 2)
            tokens = self.transformer["encoder"](x.flatten(2).transpose(1, 2), position, None)
            memory = tokens.transpose(1, 2).unflatten(2, x.shape[-2:])
        y = F.relu_(self.get_submodule(f"layer_{len(features)}")(memory))
        return memory, self.top_down(features[:-1], y)


def xavier_fill(convolution: nn.Conv2d) -> None:
    """The official start of a convolution: uniform by its fan-in, with zero bias."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 1)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs))
