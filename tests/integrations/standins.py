"""Attention modules of other code bases, by their documented interfaces, computed by the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.ops import ms_deform_attn, use_backend

SHAPES = [(3, 4), (2, 2), (1, 1)]
LEVELS, POSITIONS, WIDTH, HEADS, POINTS = 3, 17, 32, 4, 2


class MSDeformAttnFunction:
    """A compiled extension that was not built for this device."""

    @staticmethod
    def apply(*args: Any) -> Tensor:
        raise RuntimeError("Not implemented on the CPU")


def sampled(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    """The operator by its plainest form."""
    with use_backend("reference"):
        return ms_deform_attn(value, shapes, locations, weights)


class Projections(nn.Module):
    """The layers that all have; `names` are those of heads, levels and points."""

    def __init__(self, projected: bool = True) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        if projected:
            self.value_proj, self.output_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def sampling(self, query: Tensor, reference: Tensor, shapes: Any) -> tuple[Tensor, Tensor]:
        form = (HEADS, LEVELS, POINTS)
        offsets = self.sampling_offsets(query).unflatten(-1, (*form, 2))
        weights = self.attention_weights(query).unflatten(-1, (HEADS, -1)).softmax(-1).unflatten(-1, form[1:])
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            return reference + offsets / torch.as_tensor(shapes).flip(1)[:, None], weights
        return reference[..., :2] + offsets / POINTS * reference[..., 2:] * 0.5, weights

    def projected(self, source: Tensor, padding: Tensor | None) -> Tensor:
        value = self.value_proj(source)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        return value.unflatten(-1, (HEADS, -1))


class MSDeformAttn(Projections):
    """Deformable-DETR's; its sampling is left to the function of its extension."""

    def __init__(self) -> None:
        super().__init__()
        self.d_model, self.n_levels, self.n_heads, self.n_points = WIDTH, LEVELS, HEADS, POINTS
        self.im2col_step = 64

    def forward(
        self,
        query,
        reference_points,
        input_flatten,
        input_spatial_shapes,
        input_level_start_index,
        input_padding_mask=None,
    ):
        value = self.projected(input_flatten, input_padding_mask)
        sampling = self.sampling(query, reference_points, input_spatial_shapes)
        output = MSDeformAttnFunction.apply(
            value, input_spatial_shapes, input_level_start_index, *sampling, self.im2col_step
        )
        return self.output_proj(output)


class RFDETRAttention(MSDeformAttn):
    """rfdetr's, which takes the shapes as numbers too and has a mode for export."""

    def __init__(self) -> None:
        super().__init__()
        self._export = False

    def forward(
        self,
        query,
        reference_points,
        input_flatten,
        input_spatial_shapes,
        input_level_start_index,
        input_padding_mask=None,
        input_spatial_shapes_hw=None,
    ):
        if self._export:
            return query
        shapes = input_spatial_shapes if input_spatial_shapes_hw is None else input_spatial_shapes_hw
        value = self.projected(input_flatten, input_padding_mask)
        return self.output_proj(sampled(value, shapes, *self.sampling(query, reference_points, shapes)))


RFDETRAttention.__name__ = "MSDeformAttn"


class MultiScaleDeformableAttention(Projections):
    """mmcv's, and detrex's."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embed_dims, self.num_levels, self.num_heads, self.num_points = WIDTH, LEVELS, HEADS, POINTS
        self.dropout, self.batch_first = nn.Dropout(0.1), batch_first

    def forward(
        self,
        query,
        key=None,
        value=None,
        identity=None,
        query_pos=None,
        key_padding_mask=None,
        reference_points=None,
        spatial_shapes=None,
        level_start_index=None,
        **kwargs,
    ):
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.projected(value, key_padding_mask)
        sampling = self.sampling(query, reference_points, spatial_shapes)
        output = self.output_proj(sampled(value, spatial_shapes, *sampling))
        output = output if self.batch_first else output.transpose(0, 1)
        return self.dropout(output) + identity


class GroundingDINOAttention(MultiScaleDeformableAttention):
    """GroundingDINO's, without the residual."""

    def forward(
        self,
        query,
        key=None,
        value=None,
        query_pos=None,
        key_padding_mask=None,
        reference_points=None,
        spatial_shapes=None,
        level_start_index=None,
        **kwargs,
    ):
        zero = torch.zeros_like(query)
        training = self.training
        self.dropout.eval()
        output = super().forward(
            query,
            key,
            value,
            zero,
            query_pos,
            key_padding_mask,
            reference_points,
            spatial_shapes,
            level_start_index,
        )
        self.dropout.train(training)
        return output


GroundingDINOAttention.__name__ = "MultiScaleDeformableAttention"


class MSDeformableAttention(Projections):
    """RT-DETR's: a mask of content, and shapes as numbers."""

    def __init__(self, projected: bool = True) -> None:
        super().__init__(projected)
        self.embed_dim, self.num_levels, self.num_heads = WIDTH, LEVELS, HEADS
        self.num_points_list = [POINTS] * LEVELS

    def forward(self, query, reference_points, value, value_spatial_shapes, value_mask=None):
        value = self.projected(value, None if value_mask is None else ~value_mask)
        sampling = self.sampling(query, reference_points, value_spatial_shapes)
        return self.output_proj(sampled(value, value_spatial_shapes, *sampling))


class DFINEAttention(MSDeformableAttention):
    """D-FINE's: no projections, a list of maps with channels first, boxes for all levels at once."""

    def __init__(self) -> None:
        super().__init__(projected=False)

    def forward(self, query, reference_points, value, value_spatial_shapes):
        if reference_points.shape[2] != 1 or reference_points.shape[3] != 4:
            raise RuntimeError("reference_points")
        value = torch.cat(list(value), -1).permute(0, 3, 1, 2)
        return sampled(
            value, value_spatial_shapes, *self.sampling(query, reference_points, value_spatial_shapes)
        )


DFINEAttention.__name__ = "MSDeformableAttention"
