"""The arguments of the operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detr_fast.ops.memory import empty


class Rows(NamedTuple):
    """What is sampled of the maps: R rows, each one map at one set of points.

    points: [G, P, 2] floating point, (x, y).
    map_index: [R] int64, the map of each row; None: row r takes map r.
    point_index: [R] int64, the points of each row; None: row r takes set r.
    """

    points: Tensor
    map_index: Tensor | None
    point_index: Tensor | None

    def count(self, shape: torch.Size) -> int:
        """R, with maps of that shape."""
        index = self.point_index if self.map_index is None else self.map_index
        return shape[0] if index is None else index.shape[0]

    def empty_samples(self, maps: Tensor) -> Tensor:
        """Room for the samples, [R, C, P]."""
        shape = (self.count(maps.shape), maps.shape[1], self.points.shape[1])
        return empty(shape, maps, result_dtype(maps.dtype))


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float32
