"""The names under which other code bases call multi-scale deformable attention.

Deformable-DETR, Mask2Former, DINO and their kin do
`from functions import MSDeformAttnFunction`; mmcv calls it `MultiScaleDeformableAttnFunction`. Import
this one instead:

>>> from detr_fast.integrations.ms_deform_attn import MSDeformAttnFunction
"""

from __future__ import annotations

from torch import Tensor

from detr_fast.ops import ms_deform_attn_classic

__all__ = ["MSDeformAttnFunction", "MultiScaleDeformableAttnFunction"]


class MSDeformAttnFunction:
    """Stands for the official `torch.autograd.Function`: only `apply` is called on it."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """`detr_fast.ops.ms_deform_attn_classic`, differentiable as ever."""
        return ms_deform_attn_classic(
            value,
            value_spatial_shapes,
            value_level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        )


MultiScaleDeformableAttnFunction = MSDeformAttnFunction
