"""The Triton backend: the GPU kernels for people without a compiler. Triton is imported by the first call.

Triton's launcher takes 20 to 50 us of Python a kernel, most of a decoder-sized call; where that matters,
capture a CUDA graph or use the CUDA backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.memory import ready
from detr_fast.ops.ms_deform_attn.ordered import (
    check_countable,
    grad_value_in_order,
    in_input_dtypes,
    sort_by_cell,
    zeros_where,
)
from detr_fast.ops.triton_launch import device_table, launch, power_of_two

LevelShapes = Sequence[tuple[int, int]]

_SCALAR_LEVELS = 8  # more than any known model has; further ones go through memory
# of a deterministic backward: pixels a program and samples a step; a fine level has about ten samples a pixel
_GATHER_PIXELS, _GATHER_SAMPLES = 4, 8


class Configuration(NamedTuple):
    """A program's tile, in the order of the kernels' last parameters, and its warps."""

    block_q: int
    block_p: int
    block_d: int
    block_k: int
    num_warps: int


@lru_cache(maxsize=256)
def configuration(
    rows: int, channels: int, levels: int, points: int, itemsize: int, *, backward: bool = False
) -> Configuration:
    """The tile for `rows` = B * Q * H rows of `channels` channels of `itemsize` bytes.

    Chosen by what is known before a run, not by timing: nothing recompiles but for a new model, and for
    small against large calls.
    """
    block_d = power_of_two(channels)
    # a lane loads 16 bytes at once
    lanes = max(1, block_d * itemsize // 16)
    # one iteration covers the points of a level; four at most, because a level's tail is masked
    block_p = min(4, power_of_two(points))
    # four warps hide the latency of a gather and leave 16 and more programs to an SM
    num_warps = 4
    # samples a lane handles: 16 accumulators keep 16 loads in flight and spill nothing, backward half of it
    samples = max(1, (8 if backward else 16) * itemsize // 16)
    block_q = max(1, min(64, 32 * num_warps * samples // lanes) // block_p)
    # few rows: one sample a lane, so that every SM of a large GPU gets work
    if rows < 1024 * block_q:
        block_q = max(1, min(64, 32 * num_warps // lanes) // block_p)
    # logits at once: fewer than threads and another shape than the points, or Triton ties their layout to
    # that of the sampling and moves everything through shared memory
    block_k = min(64 // block_q, power_of_two(levels * points))
    block_k = block_k // 2 if block_k == block_p > 1 else block_k
    return Configuration(block_q, block_p, block_d, block_k, num_warps)


def forward(
    value: Tensor,
    level_shapes: LevelShapes,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None = None,
) -> Tensor:
    """As `reference.forward`."""
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = coordinates.shape
    out = value.new_empty(batch, queries, heads * channels)
    if out.numel() == 0 or weights.numel() == 0:
        return out.zero_()
    tile = configuration(batch * queries * heads, channels, levels, points, value.element_size())
    arguments = (
        out,
        ready(value),
        *_ready(coordinates, weights, reference_points),
        *_levels(level_shapes, value),
        queries,
        pixels,
        *(heads, channels, levels, points, _dims(reference_points)),
        *tile[:4],
    )
    launch(_kernels().forward_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    return out


def backward(
    grad_out: Tensor,
    value: Tensor,
    level_shapes: LevelShapes,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    needs: Sequence[bool],
    deterministic: bool = False,
) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    `deterministic` fixes the order in which grad_value is summed; it costs a sort of all samples.
    """
    inputs = (value, coordinates, weights, reference_points)
    if grad_out.numel() == 0 or weights.numel() == 0:
        return zeros_where(needs, inputs)
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = coordinates.shape
    dims = _dims(reference_points)
    given = _ready(coordinates, weights, reference_points)
    value, grad_out = ready(value), ready(grad_out, value.dtype)
    grad_value = grad_coordinates = grad_weights = by_weight = parts = None
    if needs[0] and not deterministic:
        grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    if needs[1]:
        grad_coordinates = given[0].new_empty(coordinates.shape)
    if needs[2]:
        by_weight = grad_weights = given[1].new_empty(weights.shape)
        if dims and grad_weights.dtype != torch.float32:
            by_weight = torch.empty(weights.shape, dtype=torch.float32, device=value.device)
    if needs[3] and dims:
        parts = torch.empty((*weights.shape[:4], dims), dtype=torch.float32, device=value.device)
    outputs = (grad_value, grad_coordinates, grad_weights, by_weight, parts)
    if any(t is not None for t in outputs):
        rows = batch * queries * heads
        tile = configuration(rows, channels, levels, points, value.element_size(), backward=True)
        arguments = (
            grad_out,
            value,
            *given,
            *(value if t is None else t for t in outputs),
            *_levels(level_shapes, value),
            queries,
            pixels,
            *(heads, channels, levels, points, dims),
            *(t is not None for t in (grad_value, grad_coordinates, grad_weights, parts)),
            *tile[:4],
        )
        launch(_kernels().backward_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    if needs[0] and deterministic:
        references = given[2] if dims else None
        grad_value = grad_value_in_order(
            _gather, level_shapes, grad_out, value, given[0], given[1], references
        )
    gradients = (grad_value, grad_coordinates, grad_weights, None if parts is None else parts.sum(2))
    return in_input_dtypes(gradients, inputs)


def _gather(
    level_shapes: LevelShapes,
    grad_value: Tensor,
    grad_out: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> None:
    kernels = _gather_kernels()
    batch, pixels, heads, channels = grad_value.shape
    _, queries, _, levels, points, _ = coordinates.shape
    cells = sum([(height + 1) * (width + 1) for height, width in level_shapes]) + 1
    check_countable(weights.numel(), batch * heads * cells)
    packed = _levels(level_shapes, grad_value)
    cell = torch.empty(weights.numel(), dtype=torch.int32, device=weights.device)
    records = torch.empty(weights.numel(), 3, dtype=torch.float32, device=weights.device)
    rows = batch * queries * heads
    tile = configuration(rows, 1, levels, points, 4)
    references = weights if reference_points is None else reference_points
    arguments: tuple[Any, ...] = (
        *(cell, records, coordinates, weights, references),
        *packed,
        *(queries, cells),
        *(heads, levels, points, _dims(reference_points)),
        *(tile.block_q, tile.block_p, tile.block_k),
    )
    launch(kernels.bin_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    order, starts = sort_by_cell(cell, batch * heads * cells)
    arguments = (
        *(grad_value, grad_out, records, order, starts),
        *packed,
        *(pixels, cells),
        *(heads, channels, levels, points),
        *(_GATHER_PIXELS, _GATHER_SAMPLES, power_of_two(channels)),
    )
    launch(kernels.gather_kernel, batch * heads * -(-pixels // _GATHER_PIXELS), 4, arguments)


def _programs(batch: int, queries: int, heads: int, tile: Configuration) -> int:
    return batch * heads * -(-queries // tile.block_q)


def _levels(level_shapes: LevelShapes, like: Tensor) -> tuple[Any, ...]:
    """Level shapes for the kernels: scalars, which need no copy to the device, cache or recompilation."""
    packed = _pack(tuple(level_shapes))
    if len(level_shapes) <= _SCALAR_LEVELS:
        return like, *packed
    return device_table(packed, like.device), *packed[:_SCALAR_LEVELS]


@lru_cache(maxsize=1024)
def _pack(level_shapes: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Height and width of each level in 64 bits, at least eight of them."""
    packed = [height << 32 | width for height, width in level_shapes]
    return *packed, *[0] * (_SCALAR_LEVELS - len(packed))


def _ready(coordinates: Tensor, weights: Tensor, reference_points: Tensor | None) -> tuple[Tensor, ...]:
    """As kernels take them: of at most float32; weights stand in for missing references."""
    tensors = (coordinates, weights, weights if reference_points is None else reference_points)
    return tuple([ready(t, None if t.dtype in KERNEL_FLOATS else torch.float32) for t in tensors])


def _dims(reference_points: Tensor | None) -> int:
    return 0 if reference_points is None else reference_points.shape[-1]


def _kernels() -> ModuleType:
    from detr_fast.ops.ms_deform_attn import triton_kernels

    return triton_kernels


def _gather_kernels() -> ModuleType:
    from detr_fast.ops.ms_deform_attn import triton_gather

    return triton_gather
