"""The Triton backend. Triton is imported by the first call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from detr_fast.ops.class_loss.options import ClassLossOptions
from detr_fast.ops.memory import ready
from detr_fast.ops.triton_launch import device_table, launch, power_of_two

# eight numbers a lane of four warps; rows of more classes are taken in pieces
_BLOCK, _MOST_CLASSES = 1024, 1024
_BLOCK_T = 16


def forward(
    logits: Tensor, labels: Tensor, query: Tensor, num_targets: Sequence[int], options: ClassLossOptions
) -> Tensor:
    """[L] sums over queries; arguments as the public function's, already checked."""
    from detr_fast.ops.class_loss.triton_kernels import forward_kernel

    layers, images, queries, classes = logits.shape
    block_k, block_q = _blocks(queries, classes)
    # every program its own number, added up in a fixed order
    sums = torch.empty(layers, images * -(-queries // block_q), dtype=torch.float32, device=logits.device)
    if sums.numel():
        _launch(forward_kernel, sums, None, logits, labels, query, num_targets, options, block_k, block_q)
    return sums.sum(1)


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    options: ClassLossOptions,
) -> Tensor:
    """The gradient of the logits, in their dtype."""
    from detr_fast.ops.class_loss.triton_kernels import backward_kernel

    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if gradient.numel():
        blocks = _blocks(*logits.shape[2:])
        _launch(
            backward_kernel,
            gradient,
            ready(grad_loss),
            logits,
            labels,
            query,
            num_targets,
            options,
            *blocks,
        )
    return gradient


def _blocks(queries: int, classes: int) -> tuple[int, int]:
    block_k = min(_MOST_CLASSES, power_of_two(classes))
    return block_k, min(_BLOCK // block_k, power_of_two(max(queries, 1)))


def _launch(
    kernel: object,
    out: Tensor,
    grad_loss: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    options: ClassLossOptions,
    block_k: int,
    block_q: int,
) -> None:
    layers, images, queries, classes = logits.shape
    programs = layers * images * -(-queries // block_q)
    pointers = (out, ready(logits), ready(labels), ready(query))
    first_target = device_table((0, *accumulate(num_targets)), logits.device)
    numbers = (images, queries, classes, labels.shape[0], *options[1:])
    constants = (options.focal, options.gamma == 2, block_q, block_k, _BLOCK_T)
    gradient = () if grad_loss is None else (grad_loss,)
    launch(kernel, programs, 4, (*pointers, first_target, *gradient, *numbers, *constants))
