"""Point samples: ours, and `grid_sample` as PointRend's `point_sample` calls it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from benchmarks import contract
from benchmarks.cases import FORWARD, PointSampleInputs
from benchmarks.peers.peer import Call, Contender, Peer
from detr_fast.ops import point_sample


def _contender(name: str, function: Callable[[PointSampleInputs, Tensor], Tensor]) -> Contender:
    """`function(inputs, maps)` with or without its backward pass."""

    def prepare(inputs: PointSampleInputs, pass_: str, threads: int) -> Call:
        if pass_ == FORWARD:
            return lambda: (function(inputs, inputs.maps),)
        leaf = inputs.maps.detach().requires_grad_()

        def step() -> tuple[Tensor, ...]:
            output = function(inputs, leaf)
            return output, *torch.autograd.grad(output, leaf, inputs.grad_output)

        return step

    def canonical(result: tuple[Tensor, ...], inputs: PointSampleInputs) -> dict[str, Tensor]:
        return dict(zip(("output", "grad_maps"), (tensor.detach() for tensor in result), strict=False))

    return Contender(name, prepare, canonical)


def _ours(inputs: PointSampleInputs, maps: Tensor) -> Tensor:
    return point_sample(maps, inputs.points, map_index=inputs.map_index)


def _grid_sample(inputs: PointSampleInputs, maps: Tensor) -> Tensor:
    chosen = maps if inputs.map_index is None else maps[inputs.map_index]
    grid = 2 * inputs.points[:, :, None] - 1
    return grid_sample(chosen.float(), grid, mode="bilinear", align_corners=False)[..., 0]


def peers() -> list[Peer]:
    theirs, ours = _contender("grid_sample", _grid_sample), _contender("detr_fast", _ours)
    return [Peer("point_sample", theirs, ours, contract.POINT_SAMPLE, quick=False)]
