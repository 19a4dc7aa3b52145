"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, section 4.1, equation 3).

Letters: `B` images, `Q` queries, `H` heads, `D` head channels, `N` levels, `P` points, `S` value
positions, levels concatenated row-major.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn.call import OPERATOR, call
from detr_fast.ops.ms_deform_attn.checks import check_level_start_index, points_of

__all__ = ["OPERATOR", "ms_deform_attn", "ms_deform_attn_classic", "ms_deform_attn_fused"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sums bilinear samples of several feature maps, for every query and head.

    `out[b, q, h] = sum over n, p of attention_weights[b, q, h, n, p] * sample(level n of value[b, :, h],
    sampling_locations[b, q, h, n, p])`. A location (x, y) runs from 0 to 1 between the outer edges of the
    level, so its pixel coordinate is `location * size - 0.5`. Outside a level everything is zero: pixels
    beyond the border take no part, whatever the weight, and a sample at a NaN location contributes
    nothing, as in the official CUDA kernel. On an integer pixel coordinate the gradient by location is
    the right-hand derivative.

    Coordinates, weights and sums are float32 inside (float64 for float64 values), whatever the dtypes;
    autocast changes nothing. The result is the same, bit for bit, in every run and for any number of
    threads; the gradient of value on a GPU is so where `deterministic`. Only the reference backend can be
    differentiated twice.

    Backends, best first: "cuda" (NVIDIA GPUs, compiled in), "triton" (GPUs, needs the triton package),
    "cpu", "reference" (PyTorch on any device, alone with float64). A GPU backend waits for the
    device only to read `spatial_shapes` from it; all its work goes to the current stream of the tensors'
    device, which need not be the current device.

    Args:
        value: [B, S, H, D] float32, bfloat16, float16 or float64.
        spatial_shapes: (height, width) of each level: [N, 2] int64 or a sequence of pairs of integers.
            A tensor on a GPU is read back, and the call waits for it; integers or a CPU tensor are not.
        sampling_locations: [B, Q, H, N, P, 2] floating point, (x, y).
        attention_weights: [B, Q, H, N, P] floating point, used as they are.
        points_per_level: P of each level, where they differ (RT-DETRv2, D-FINE), 0 allowed; locations are
            then [B, Q, H, sum of P, 2] and weights [B, Q, H, sum of P], levels one after the other.
        deterministic: True: the GPU backends sum the gradient of value in a fixed order, bitwise equal
            between runs, in more time and memory (up to 0.8 GB). None: as
            `torch.are_deterministic_algorithms_enabled()` says when backward runs. The CPU backend is
            always deterministic; the reference on a GPU follows torch's setting alone.
        backend: pins one of the backends above; None takes the best.

    Returns:
        [B, Q, H * D] in value's dtype. Gradients come in each input's dtype.

    Raises:
        ValueError: a shape or device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendUnavailable: the pinned backend cannot run on these tensors.
    """
    return call(
        value,
        spatial_shapes,
        sampling_locations,
        attention_weights,
        None,
        None if points_per_level is None else points_of(points_per_level),
        backend,
        deterministic,
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
    offset_scale: float = 0.5,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """`ms_deform_attn` with the softmax and the arithmetic of locations inside, forward and backward.

    Weights are the softmax of the logits over levels and points together. Locations are
    `reference + offset / (width, height)` for 2-d references and
    `reference_xy + offset / P * reference_wh * offset_scale` for 4-d references (cx, cy, w, h).

    Args:
        value: [B, S, H, D] float32, bfloat16, float16 or float64.
        spatial_shapes: (height, width) of each level: [N, 2] int64 or a sequence of pairs of integers.
        reference_points: [B, Q, N, 2] or [B, Q, N, 4] floating point, relative to each level; 1 in place of N
            where all levels share them.
        sampling_offsets: [B, Q, H, N, P, 2] floating point, (x, y).
        attention_logits: [B, Q, H, N, P] or [B, Q, H, N * P] floating point.
        points_per_level: P of each level, as in `ms_deform_attn`; offsets are then [B, Q, H, sum of P, 2] and
            logits [B, Q, H, sum of P].
        offset_scale: the part of a 4-d reference that P offset units span; another than 0.5 costs a pass
            over the offsets.
        deterministic: as in `ms_deform_attn`.
        backend: as in `ms_deform_attn`.

    Returns:
        [B, Q, H * D] in value's dtype. Gradients come in each input's dtype.

    Raises:
        ValueError, TypeError, BackendUnavailable: as `ms_deform_attn`.
    """
    if not isinstance(reference_points, Tensor):
        raise TypeError(f"reference_points: expected a tensor; got {type(reference_points).__name__}")
    points = points_of(points_per_level)
    if isinstance(attention_logits, Tensor) and isinstance(sampling_offsets, Tensor):
        shape = sampling_offsets.shape[3:-1]
        levels = len(points) if points is not None else shape[0] if shape else 1
        if (
            len(shape) == 2
            and attention_logits.ndim == 4
            and attention_logits.shape[3] == shape[0] * shape[1]
        ):
            attention_logits = attention_logits.unflatten(3, shape)
        if reference_points.ndim == 4 and reference_points.shape[2] == 1 != levels:
            reference_points = reference_points.expand(-1, -1, levels, -1)
        if offset_scale != 0.5 and reference_points.shape[-1] == 4:
            sampling_offsets = sampling_offsets * (2 * offset_scale)
    return call(
        value,
        spatial_shapes,
        sampling_offsets,
        attention_logits,
        reference_points,
        points,
        backend,
        deterministic,
    )


def ms_deform_attn_classic(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    *,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """`ms_deform_attn` in the signature of Deformable-DETR, mmcv and transformers.

    Args:
        value: as in `ms_deform_attn`.
        spatial_shapes: as in `ms_deform_attn`.
        level_start_index: [N] int64, the first position of each level. It follows from
            `spatial_shapes`; on the CPU it must agree, on a GPU it is not read.
        sampling_locations: as in `ms_deform_attn`.
        attention_weights: as in `ms_deform_attn`.
        im2col_step: accepted and ignored; the images are never split.
        deterministic: as in `ms_deform_attn`.
        backend: as in `ms_deform_attn`.
    """
    on_host = not isinstance(level_start_index, Tensor) or type(level_start_index) is Tensor
    if on_host and not torch.compiler.is_compiling() and not getattr(level_start_index, "is_cuda", False):
        check_level_start_index(level_start_index, spatial_shapes)
    return ms_deform_attn(
        value,
        spatial_shapes,
        sampling_locations,
        attention_weights,
        deterministic=deterministic,
        backend=backend,
    )
