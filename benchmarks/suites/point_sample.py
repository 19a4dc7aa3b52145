"""Point samples beside `grid_sample`, as PointRend's `point_sample` calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from benchmarks.suite import (
    FORWARD,
    FORWARD_BACKWARD,
    OURS,
    Contender,
    Suite,
    Work,
    differentiable,
    drawn_from,
    size_of,
)
from detr_fast.ops import point_sample

OPERATOR = "point_sample"


@dataclass(frozen=True)
class Inputs:
    """One call: maps [M, C, h, w], points [R, P, 2], and, where rows choose, map_index [R].

    grad_output: [R, C, P].
    """

    maps: Tensor
    points: Tensor
    map_index: Tensor | None
    grad_output: Tensor

    @property
    def leaves(self) -> Mapping[str, Tensor]:
        return {"maps": self.maps}


@dataclass(frozen=True)
class PointSample:
    """Mask2Former's uses: 12544 uniform points a row, as its matcher and its losses draw them.

    rows: of so many random maps (None: every map is a row). masks: bool maps, discs of all sizes.
    """

    name: str
    maps: tuple[int, int, int, int]
    rows: int | None = None
    masks: bool = False
    points: int = 12544
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD,)

    def inputs(self, generator: Generator) -> Inputs:
        M, C, h, w = self.maps
        device, draw = generator.device, drawn_from(generator)
        if self.masks:
            y, x = (torch.arange(side, device=device).add(0.5).div(side) for side in (h, w))
            centre, radius = torch.rand(M, C, 2, 1, 1, **draw), 0.4 * torch.rand(M, C, 1, 1, **draw)
            maps = (x - centre[:, :, 0]) ** 2 + (y[:, None] - centre[:, :, 1]) ** 2 < radius**2
        else:
            maps = torch.randn(self.maps, **draw)
        index = None if self.rows is None else torch.randperm(M, **draw)[: self.rows]
        R = M if self.rows is None else self.rows
        points = torch.rand(R, self.points, 2, **draw)
        return Inputs(maps, points, index, torch.randn(R, C, self.points, **draw))


def _ours(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    return lambda maps: point_sample(maps, inputs.points, map_index=inputs.map_index)


def _grid_sample(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    def call(maps: Tensor) -> Tensor:
        chosen = maps if inputs.map_index is None else maps[inputs.map_index]
        grid = 2 * inputs.points[:, :, None] - 1
        return grid_sample(chosen.float(), grid, mode="bilinear", align_corners=False)[..., 0]

    return call


def _contenders(case: Any) -> list[Contender]:
    ours = differentiable(OURS, _ours, ours=True)
    return [ours, differentiable("grid_sample", _grid_sample, quick=False)]


def _work(inputs: Inputs, pass_: str) -> Work:
    """Each chosen map once, or four values a point where those are fewer."""
    chosen = size_of(inputs.maps[:1]) * len(inputs.points)
    channels = inputs.maps.shape[1] * inputs.maps.element_size()
    read = min(chosen, 4 * channels * inputs.points[..., 0].numel()) + size_of(inputs.points)
    if pass_ == FORWARD:
        return Work(read + size_of(inputs.grad_output))  # the output is of grad_output's size
    return Work(read + 2 * size_of(inputs.grad_output) + size_of(inputs.maps, inputs.points))


_BOTH = (FORWARD, FORWARD_BACKWARD)
_CASES = (
    PointSample("matcher", (4, 100, 256, 256)),
    PointSample("loss", (400, 1, 256, 256), rows=100, passes=_BOTH),
    PointSample("target masks", (100, 1, 1024, 1024), masks=True),
)
SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        _work,
        cases=(PointSample("smallest", (1, 1, 2, 2), points=1), *_CASES),
        tiny=(
            PointSample("rows", (6, 1, 8, 8), rows=4, points=9, passes=_BOTH),
            PointSample("maps", (6, 1, 8, 8), masks=True, points=9),
        ),
        gpu_cases=tuple(replace(case, quick=False) for case in _CASES),
    )
]
