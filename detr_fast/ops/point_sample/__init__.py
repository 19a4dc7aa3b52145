"""Bilinear samples of many maps at points: mask logits and target masks, without gathering the maps.

Letters: `M` maps, `C` channels, `h`, `w` a map's height and width, `G` sets of `P` points, `R` rows, each one
map at one set of points.
"""

from __future__ import annotations

from torch import Tensor

from detr_fast.ops.point_sample.call import OPERATOR, SAMPLE
from detr_fast.ops.point_sample.checks import check

__all__ = ["OPERATOR", "point_sample"]


def point_sample(
    maps: Tensor,
    points: Tensor,
    *,
    map_index: Tensor | None = None,
    point_index: Tensor | None = None,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """`out[r, :, p] = maps[map_index[r]] at points[point_index[r], p]`: row r samples its map at its points.

    What PointRend (arXiv:1912.08193, section 3), MaskFormer and Mask2Former call `point_sample`:
    `grid_sample(maps[map_index], 2 * points[point_index] - 1)`, bilinear, `align_corners=False`, zeros
    outside. A point (x, y) runs from 0 to 1 between the outer edges of the map, so its pixel coordinate is
    `point * size - 0.5`; within half a pixel of an edge, pixels are blended with the zeros outside. Pixels
    outside take no part, whatever their weight, and a NaN point gives 0. Maps are neither gathered nor
    converted: a bool mask is read as bytes.

    Arithmetic is float32 (float64 for float64 maps), whatever the dtypes; autocast changes nothing. The
    result is linear in `maps`, and can be differentiated by them any number of times; gradients are summed
    in float32 over all rows that share a map. The CPU backend gives the same bits for any number of
    threads.

    Args:
        maps: [M, C, h, w] float32, bfloat16, float16, float64, bool (as 0 and 1) or uint8 (0 to 255).
        points: [G, P, 2] floating point, (x, y). No gradient is computed for them.
        map_index: [R] int64, the map of each row; None: row r takes map r.
        point_index: [R] int64, the points of each row; None: row r takes set r.
        deterministic: True: the Triton backend sums gradients in a fixed order, bitwise equal between runs,
            in more time. None: as `torch.are_deterministic_algorithms_enabled()` says when backward
            runs. The CPU backend is always deterministic.
        backend: "triton" (GPUs), "cpu" or "reference" (PyTorch on any device, alone with float64);
            None takes the best.

    Returns:
        [R, C, P] in maps' dtype; float32 for bool and uint8 maps.

    Raises:
        ValueError: a shape or device does not fit, points require a gradient or, on the CPU, an index is out
            of range; the message names the argument. On a GPU, where looking would stall the queue, a
            row with an index out of range is NaN and gives no gradient.
        TypeError: a dtype does not fit.
        BackendUnavailable: the pinned backend cannot run on these tensors.
    """
    check(maps, points, map_index, point_index)
    return SAMPLE((maps, points, map_index, point_index, deterministic), backend)
