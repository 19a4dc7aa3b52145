"""Where mask losses are taken: points drawn where a mask is least certain (PointRend, Mask2Former)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from detr_fast.masks import chunks
from detr_fast.ops.point_sample import OPERATOR, cpu, point_sample
from detr_fast.ops.point_sample.checks import check
from detr_fast.ops.register import watched

_AT_ONCE = 2**22  # candidates that are drawn and sampled at once: 0.1 GB


@torch.no_grad()
def uncertain_points(
    maps: Tensor,
    num_points: int,
    *,
    map_index: Tensor | None = None,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    generator: Generator | None = None,
    candidates: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """Draws the points of each row: most of them where its logit is nearest to zero, the rest anywhere.

    PointRend's training points (arXiv:1912.08193, section 3.1) with Mask2Former's uncertainty -|logit|: of
    `int(oversample_ratio * P)` uniform candidates the `int(importance_ratio * P)` most uncertain ones, then
    uniform points. A logit is sampled before its uncertainty is taken; NaN is the most uncertain. Nothing
    waits for a GPU, and working memory does not grow with the number of rows.

    The native CPU backend keeps the candidates in their order and takes the first of equally uncertain ones.
    One number of the generator is the seed of all that it draws, from top to bottom of the map; the points
    are the same for any number of threads. Elsewhere the order is any.

    Args:
        maps: [M, 1, h, w] mask logits.
        num_points: P, the points of a row.
        map_index: [R] int64, the map of each row; None: row r takes map r.
        oversample_ratio: candidates a point, >= 1.
        importance_ratio: share of the points that are chosen by uncertainty, from 0 to 1.
        generator: draws the candidates and the uniform points, on maps' device; None: torch's own.
        candidates: [R, int(oversample_ratio * P), 2] candidates in place of drawn ones.
        extra: [R, P - int(importance_ratio * P), 2] uniform points in place of drawn ones.

    Returns:
        [R, P, 2] float32 (x, y) in 0..1.

    Raises:
        ValueError: a shape or option does not fit; the message names the argument.
    """
    if num_points < 0 or not (oversample_ratio >= 1 and 0 <= importance_ratio <= 1):
        raise ValueError(
            "num_points, oversample_ratio, importance_ratio: expected >= 0, >= 1 and from 0 to 1; got "
            f"{num_points}, {oversample_ratio}, {importance_ratio}"
        )
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ValueError(f"maps: expected [M, 1, h, w]; got {list(maps.shape)}")
    rows = len(maps) if map_index is None else len(map_index)
    oversampled, chosen = int(num_points * oversample_ratio), int(importance_ratio * num_points)
    for name, given, count in (
        ("candidates", candidates, oversampled),
        ("extra", extra, num_points - chosen),
    ):
        if given is not None and given.shape != (rows, count, 2):
            raise ValueError(f"{name}: expected [R, {count}, 2] with R = {rows}; got {list(given.shape)}")
    points = torch.empty(rows, num_points, 2, device=maps.device)
    check(maps, points if candidates is None else candidates, map_index, None)
    plain = all(t is None or type(t) is Tensor for t in (maps, map_index, candidates))
    if plain and not watched(maps) and OPERATOR.select(maps.device, maps.dtype, None) is cpu:
        draws = candidates is None or extra is None
        seed = int(torch.randint(2**63 - 1, (), generator=generator)) if draws else 0
        cpu.uncertain_points(points, maps, map_index, candidates, oversampled, chosen, extra is None, seed)
        if extra is not None:
            points[:, chosen:] = extra
        return points
    if map_index is None:
        map_index = torch.arange(rows, device=maps.device)
    step = max(1, _AT_ONCE // max(1, oversampled))
    for some in chunks(rows if chosen else 0, step):
        index = map_index[some]
        if candidates is None:
            drawn = torch.rand(len(index), oversampled, 2, generator=generator, device=maps.device)
        else:
            drawn = candidates[some].to(points.dtype)
        uncertainty = -point_sample(maps, drawn, map_index=index)[:, 0].abs()
        best = uncertainty.topk(chosen, dim=1, sorted=False).indices
        points[some, :chosen] = drawn.gather(1, best[:, :, None].expand(-1, -1, 2))
    if extra is None:
        points[:, chosen:].uniform_(generator=generator)
    else:
        points[:, chosen:] = extra
    return points
