"""Multi-scale deformable attention: ours, the `grid_sample` path and torch-ms-deform-attn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from benchmarks import contract, goals
from benchmarks.cases import FORWARD, AttentionInputs
from benchmarks.peers.peer import Call, Contender, Peer, import_peer
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused

_PLAIN = ("value", "locations", "weights")
_FUSED = ("value", "offsets", "logits")


def _attention(name: str, names: tuple[str, ...], function: Callable[..., Tensor]) -> Contender:
    """`function(inputs, *tensors)` with or without its backward pass."""

    def prepare(inputs: AttentionInputs, pass_: str, threads: int) -> Call:
        tensors = [getattr(inputs, of) for of in names]
        if pass_ == FORWARD:
            return lambda: (function(inputs, *tensors),)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]

        def step() -> tuple[Tensor, ...]:
            output = function(inputs, *leaves)
            return output, *torch.autograd.grad(output, leaves, inputs.grad_output)

        return step

    def canonical(result: tuple[Tensor, ...], inputs: AttentionInputs) -> dict[str, Tensor]:
        keys = ("output", *(f"grad_{of}" for of in names))
        return dict(zip(keys, (tensor.detach() for tensor in result), strict=False))

    return Contender(name, prepare, canonical)


def grid_sample_path(inputs: AttentionInputs, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The pure-PyTorch path that every public model falls back to: one `grid_sample` a level."""
    B, _, H, D = value.shape
    Q, P = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    sampled = []
    for level, of_level in enumerate(value.split([h * w for h, w in inputs.shapes], dim=1)):
        height, width = inputs.shapes[level]
        image = of_level.flatten(2).transpose(1, 2).reshape(B * H, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    flat = weights.transpose(1, 2).reshape(B * H, 1, Q, len(inputs.shapes) * P)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * flat).sum(-1)
    return output.view(B, H * D, Q).transpose(1, 2).contiguous()


def _grid_sample_fused(inputs: AttentionInputs, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """The same with what the models do before it: locations from offsets, softmax of the logits."""
    extent = torch.tensor([(w, h) for h, w in inputs.shapes], dtype=value.dtype)[:, None]
    locations = inputs.reference_points[:, :, None, :, None] + offsets / extent
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return grid_sample_path(inputs, value, locations, weights)


def _ours_attention(inputs: AttentionInputs, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, inputs.shapes, locations, weights)


def _ours_fused(inputs: AttentionInputs, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return ms_deform_attn_fused(value, inputs.shapes, inputs.reference_points, offsets, logits)


def _torch_ms_deform_attn(module: Any, inputs: AttentionInputs, *tensors: Tensor) -> Tensor:
    shapes = torch.tensor(inputs.shapes)
    starts = torch.tensor([0, *(h * w for h, w in inputs.shapes[:-1])]).cumsum(0)
    output: Tensor = module.ms_deform_attn(tensors[0], shapes, starts, *tensors[1:])
    return output


def peers() -> list[Peer]:
    ours = _attention("detr_fast", _PLAIN, _ours_attention)
    ours_fused = _attention("detr_fast, fused form", _FUSED, _ours_fused)
    path = _attention(goals.GRID_SAMPLE, _PLAIN, grid_sample_path)
    path_fused = _attention(f"{goals.GRID_SAMPLE}, fused form", _FUSED, _grid_sample_fused)
    module, missing = import_peer("torch_ms_deform_attn")
    other = _attention(goals.TORCH_MS_DEFORM_ATTN, _PLAIN, partial(_torch_ms_deform_attn, module))
    return [
        Peer("ms_deform_attn", path, ours, contract.ATTENTION),
        Peer("ms_deform_attn", other, ours, contract.ATTENTION, missing=missing),
        Peer("ms_deform_attn", path_fused, ours_fused, contract.FUSED_ATTENTION, quick=False),
    ]
