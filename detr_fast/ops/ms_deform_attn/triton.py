"""The Triton backend: the GPU kernels for people without a compiler. Triton is imported by the first call.

Triton's launcher takes 20 to 50 us of Python a kernel, most of a decoder-sized call; where that matters,
capture a CUDA graph or use the CUDA backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.memory import empty, ready
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn, LevelShapes
from detr_fast.ops.ms_deform_attn.ordered import check_countable, grad_value_in_order, sort_by_cell
from detr_fast.ops.triton_launch import device_table, launch, power_of_two

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
    rows: int, channels: int, points: int, samples: int, itemsize: int, *, backward: bool = False
) -> Configuration:
    """The tile for `rows` = B * Q * H rows of `channels` channels of `itemsize` bytes.

    A row has `samples` samples, `points` on the level that has most.

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
    per_lane = max(1, (8 if backward else 16) * itemsize // 16)
    block_q = max(1, min(64, 32 * num_warps * per_lane // lanes) // block_p)
    # few rows: one sample a lane, so that every SM of a large GPU gets work
    if rows < 1024 * block_q:
        block_q = max(1, min(64, 32 * num_warps // lanes) // block_p)
    # logits at once: fewer than threads and another shape than the points, or Triton ties their layout to
    # that of the sampling and moves everything through shared memory
    block_k = min(64 // block_q, power_of_two(samples))
    block_k = block_k // 2 if block_k == block_p > 1 else block_k
    return Configuration(block_q, block_p, block_d, block_k, num_warps)


class Layout(NamedTuple):
    """How samples lie in a row, in the order of the kernels' constants; see `triton_sample.points_of`."""

    levels: int
    points: int
    ragged: int
    samples: int


@lru_cache(maxsize=256)
def _layout(points: tuple[int, ...]) -> Layout:
    """That of `points[n]` points on each level n."""
    if len(set(points)) == 1:
        return Layout(len(points), points[0], 0, sum(points))
    starts = list(accumulate(points, initial=0))
    return Layout(len(points), 0, sum(start << 32 * n for n, start in enumerate(starts)), starts[-1])


def forward(call: DeformAttn) -> Tensor:
    """As `reference.forward`."""
    value, weights = call.value, call.weights
    batch, pixels, heads, channels = value.shape
    queries, layout = weights.shape[1], _layout(call.points)
    out = empty((batch, queries, heads * channels), value)
    if out.numel() == 0 or weights.numel() == 0:
        return out.zero_()
    tile = configuration(
        batch * queries * heads, channels, max(call.points), layout.samples, value.element_size()
    )
    arguments = (
        out,
        ready(value),
        *_samples(call),
        queries,
        pixels,
        *(heads, channels, *layout, call.reference_dims),
        *tile[:4],
    )
    launch(_kernels().forward_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    return out


def backward(grad_out: Tensor, call: DeformAttn, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of value, coordinates, weights and reference points, None where not needed.

    `deterministic` fixes the order in which grad_value is summed; it costs a sort of all samples.
    """
    value, coordinates, weights, *_ = call
    if grad_out.numel() == 0 or weights.numel() == 0:
        return call.zeros(needs)
    batch, pixels, heads, channels = value.shape
    queries, layout = weights.shape[1], _layout(call.points)
    dims, in_order = call.reference_dims, needs[0] and call.in_order
    samples = _samples(call)
    value, grad_out = ready(value), ready(grad_out, value.dtype)
    grad_value = grad_coordinates = grad_weights = by_weight = parts = None
    if needs[0] and not in_order:
        grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    if needs[1]:
        grad_coordinates = empty(coordinates.shape, samples[0])
    if needs[2]:
        by_weight = grad_weights = empty(weights.shape, samples[1])
        if dims and grad_weights.dtype != torch.float32:
            by_weight = empty(weights.shape, value, torch.float32)
    if needs[3] and dims:
        parts = call.reference_parts()
    outputs = (grad_value, grad_coordinates, grad_weights, by_weight, parts)
    if any(t is not None for t in outputs):
        rows = batch * queries * heads
        tile = configuration(
            rows, channels, max(call.points), layout.samples, value.element_size(), backward=True
        )
        arguments = (
            grad_out,
            value,
            *(value if t is None else t for t in outputs),
            *samples,
            queries,
            pixels,
            *(heads, channels, *layout, dims),
            *(t is not None for t in (grad_value, grad_coordinates, grad_weights, parts)),
            *tile[:4],
        )
        launch(_kernels().backward_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    if in_order:
        references = samples[2] if dims else None
        grad_value = grad_value_in_order(
            _gather, grad_out, DeformAttn(value, samples[0], samples[1], references, *call[4:])
        )
    return call.in_input_dtypes(
        (grad_value, grad_coordinates, grad_weights, None if parts is None else parts.sum(2))
    )


def _gather(grad_out: Tensor, call: DeformAttn, grad_value: Tensor) -> None:
    kernels = _gather_kernels()
    batch, pixels, heads, channels = grad_value.shape
    queries, layout = call.weights.shape[1], _layout(call.points)
    cells = sum([(height + 1) * (width + 1) for height, width in call.level_shapes]) + 1
    count = call.weights.numel()
    check_countable(count, batch * heads * cells)
    samples = _samples(call)
    cell = empty((count,), grad_value, torch.int32)
    records = empty((count, 3), grad_value, torch.float32)
    tile = configuration(batch * queries * heads, 1, max(call.points), layout.samples, 4)
    arguments: tuple[Any, ...] = (
        *(cell, records),
        *samples,
        *(queries, cells),
        *(heads, *layout, call.reference_dims),
        *(tile.block_q, tile.block_p, tile.block_k),
    )
    launch(kernels.bin_kernel, _programs(batch, queries, heads, tile), tile.num_warps, arguments)
    order, starts = sort_by_cell(cell, batch * heads * cells)
    arguments = (
        *(grad_value, grad_out, records, order, starts),
        *samples[3:],
        *(pixels, cells),
        *(heads, channels, layout.levels, layout.samples),
        *(_GATHER_PIXELS, _GATHER_SAMPLES, power_of_two(channels)),
    )
    launch(kernels.gather_kernel, batch * heads * -(-pixels // _GATHER_PIXELS), 4, arguments)


def _programs(batch: int, queries: int, heads: int, tile: Configuration) -> int:
    return batch * heads * -(-queries // tile.block_q)


def _samples(call: DeformAttn) -> tuple[Any, ...]:
    """Coordinates, weights, references (weights stand in for missing ones) and level shapes, for the kernels.

    Numbers are of at most float32. Level shapes are scalars, which need no copy to the device, cache or
    recompilation.
    """
    references = call.weights if call.reference_points is None else call.reference_points
    tensors = [
        ready(t, None if t.dtype in KERNEL_FLOATS else torch.float32)
        for t in (call.coordinates, call.weights, references)
    ]
    packed = _pack(call.level_shapes)
    table = tensors[0] if len(packed) <= _SCALAR_LEVELS else device_table(packed, tensors[0].device)
    return *tensors, table, *packed[:_SCALAR_LEVELS]


@lru_cache(maxsize=1024)
def _pack(level_shapes: LevelShapes) -> tuple[int, ...]:
    """Height and width of each level in 64 bits, at least eight of them."""
    packed = [height << 32 | width for height, width in level_shapes]
    return *packed, *[0] * (_SCALAR_LEVELS - len(packed))


def _kernels() -> ModuleType:
    from detr_fast.ops.ms_deform_attn import triton_kernels

    return triton_kernels


def _gather_kernels() -> ModuleType:
    from detr_fast.ops.ms_deform_attn import triton_gather

    return triton_gather
