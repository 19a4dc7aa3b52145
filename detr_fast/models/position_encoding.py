"""Two-dimensional position encodings of feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionEncodingSine(nn.Module):
    """Sines and cosines of the row, then of the column, counted over valid positions only.

    The encoding of "Attention Is All You Need" in two dimensions: half of the channels for y, half for x, at
    wavelengths from 2 pi to `temperature` * 2 pi, sine and cosine interleaved.

    Args:
        channels: of the result, a multiple of 4.
        temperature: one for both, or those of rows and of columns.
        normalize: positions run to `scale` over the valid part of each image instead of counting 1, 2, ...
        offset: added to the counts; -0.5 makes them the centres of pixels, as in Deformable DETR.
    """

    def __init__(
        self,
        channels: int,
        temperature: float | tuple[float, float] = 10000.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if channels <= 0 or channels % 4:
            raise ValueError(f"channels: expected a multiple of 4; got {channels}")
        self.channels = channels
        self.temperatures = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        self.normalize = normalize
        self.scale = scale
        self.offset = offset

    def forward(self, mask: Tensor) -> Tensor:
        """[B, h, w] bool, True = padding -> [B, channels, h, w] float32."""
        valid = (~mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        height, width = y[:, -1:, :], x[:, :, -1:]
        if self.offset:
            y, x = y + self.offset, x + self.offset
        if self.normalize:
            y = y / (height + 1e-6) * self.scale
            x = x / (width + 1e-6) * self.scale
        exponent = torch.arange(self.channels // 4, dtype=torch.float32, device=mask.device)
        angles = torch.stack(
            [
                position[..., None] / temperature ** (4 * exponent / self.channels)
                for position, temperature in zip((y, x), self.temperatures, strict=True)
            ],
            dim=1,
        )
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1)
        # [B, (y, x), h, w, frequency, (sin, cos)] -> [B, channels, h, w]
        return waves.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


class PositionEncodingLearned(nn.Module):
    """A learned vector for each column, then one for each row.

    Args:
        channels: of the result, even.
        size: the largest height and width of a feature map.
    """

    def __init__(self, channels: int, size: int = 50) -> None:
        super().__init__()
        if channels <= 0 or channels % 2:
            raise ValueError(f"channels: expected an even number; got {channels}")
        self.row_embed = nn.Embedding(size, channels // 2)
        self.col_embed = nn.Embedding(size, channels // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """[B, h, w] bool, True = padding -> [B, channels, h, w]."""
        batch, height, width = mask.shape
        if max(height, width) > self.row_embed.num_embeddings:
            raise ValueError(
                f"learned position encoding: expected a feature map of at most "
                f"{self.row_embed.num_embeddings} rows and columns; got {height} x {width}"
            )
        column = self.col_embed.weight[:width].expand(height, -1, -1)
        row = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat((column, row), dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)
