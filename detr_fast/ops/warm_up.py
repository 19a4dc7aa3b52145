"""Loading kernels before a CUDA graph is captured, which allows no module to be loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.box_loss import box_loss
from detr_fast.ops.box_match_cost import Classification, box_match_cost
from detr_fast.ops.class_loss import class_loss
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.mask_match_cost import MaskCost, mask_match_cost
from detr_fast.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.point_sample import point_sample

_ROWS = (1, 2**17)  # B * Q * H: Triton takes larger tiles for many rows


def warm_up(
    device: torch.device | str = "cuda",
    *,
    dtype: torch.dtype = torch.float32,
    queries: int = 300,
    classes: int = 91,
    heads: int = 8,
    channels: int = 32,
    levels: int = 4,
    points: int = 4,
) -> None:
    """Calls every operator once each way, so that their kernels are compiled and loaded on the device.

    A CUDA graph that is captured later finds them there. Triton compiles a kernel for each combination of
    dtypes and of the sizes below; a graph with others, or with options beside the defaults, needs one call
    of its own kind before, as `torch.cuda.make_graphed_callables` makes. It takes seconds where nothing is in
    Triton's cache, and about 0.2 GB of the device's memory, given back to torch's allocator.

    Args:
        device: where the graph will run.
        dtype: of values, logits, boxes and masks.
        queries: Q of the matched predictions.
        classes: K, "no object" not counted.
        heads: H of attention.
        channels: D, of a head.
        levels: N of attention.
        points: P of a level.
    """

    def rand(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full(shape, 0.5, dtype=dtype, device=device, requires_grad=True)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    shapes = [(1, 1)] * levels
    for rows in _ROWS:
        value = rand(1, levels, heads, channels)
        samples = (1, -(-rows // heads), heads, levels, points)
        locations, weights = rand(*samples, 2, dtype=torch.float32), rand(*samples)
        for deterministic in (False, True):
            out = ms_deform_attn(value, shapes, locations, weights, deterministic=deterministic)
            out.sum().backward()
            for dims in (2, 4):
                references = rand(1, samples[1], levels, dims, dtype=torch.float32)
                out = ms_deform_attn_fused(
                    value, shapes, references, locations, weights, deterministic=deterministic
                )
                out.sum().backward()
    num_targets, labels, target_boxes = [1], zeros(1), rand(1, 4, dtype=torch.float32).detach()
    boxes, masks = rand(1, 1, queries, 4), rand(1, 1, queries, 16)
    loss = torch.zeros((), device=device)
    kinds: tuple[Classification, ...] = ("softmax", "focal")
    for kind in kinds:
        logits = rand(1, 1, queries, classes + (kind == "softmax"))
        costs = box_match_cost(logits, boxes, labels, target_boxes, num_targets, classification=kind)
        query = linear_assignment(costs, num_targets)
        loss = loss + class_loss(logits, labels, query, num_targets, classification=kind).sum()
    mask_costs: tuple[MaskCost, ...] = ("bce", "focal")
    for mask_cost in mask_costs:
        mask_match_cost(logits, masks, labels, masks[0, 0, :1], num_targets, mask_cost=mask_cost)
    loss = loss + box_loss(boxes, target_boxes, query, num_targets).sum()
    maps, places = rand(1, 1, 4, 4), rand(1, 16, 2, dtype=torch.float32).detach()
    for index in (None, zeros(1)):
        loss = loss + point_sample(maps, places, map_index=index, point_index=index).sum()
    loss.backward()
