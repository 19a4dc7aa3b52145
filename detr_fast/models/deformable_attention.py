"""The multi-scale deformable attention module of Deformable DETR (arXiv:2010.04159, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detr_fast.ops import ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn.reference import sampling_locations


class MSDeformAttn(nn.Module):
    """Each query attends to a few sampled points of every level.

    Parameters carry the official names (sampling_offsets, attention_weights, value_proj, output_proj) and
    the official initialisation, so official state dicts load unchanged.

    Args:
        d_model: channels C, a multiple of `n_heads`.
        n_levels: feature levels N.
        n_heads: attention heads H.
        n_points: sampled points P of each head and level.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model: expected a multiple of n_heads = {n_heads}; got {d_model}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points start on rays, one direction a head, the p-th at distance p; weights start equal."""
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        rays = direction[:, None, None] * distance[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(rays.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor | Sequence[Sequence[int]],
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from `query` to `input_flatten`.

        Args:
            query: [B, Q, C].
            reference_points: [B, Q, N, 2] centres, or [B, Q, N, 4] boxes (cx, cy, w, h), relative to each
                level.
            input_flatten: [B, S, C], the levels concatenated row-major.
            input_spatial_shapes: (height, width) of each level, integers or [N, 2] int64.
            input_level_start_index: accepted for the official signature; it follows from the shapes.
            input_padding_mask: [B, S] bool, True = padding: its values count as zero.

        Returns:
            [B, Q, C].
        """
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0)
        attended = ms_deform_attn_fused(
            value.view(*value.shape[:2], self.n_heads, self.d_model // self.n_heads),
            input_spatial_shapes,
            reference_points,
            *self._offsets_and_logits(query),
        )
        return self.output_proj(attended)

    def samples(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Where `forward` samples and with which weights.

        Args:
            query: [B, Q, C].
            reference_points: [B, Q, N, 2 or 4], see `forward`.
            spatial_shapes: (height, width) of each level.

        Returns:
            Locations [B, Q, H, N, P, 2], (x, y) relative to each level, and weights [B, Q, H, N, P], of sum 1
            over levels and points.
        """
        offsets, logits = self._offsets_and_logits(query)
        locations = sampling_locations(reference_points, offsets.to(reference_points.dtype), spatial_shapes)
        return locations, logits.flatten(3).softmax(-1).view_as(logits)

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Q, C] -> [B, Q, H, N, P, 2] and [B, Q, H, N, P]."""
        samples = (*query.shape[:2], self.n_heads, self.n_levels, self.n_points)
        return self.sampling_offsets(query).view(*samples, 2), self.attention_weights(query).view(samples)
