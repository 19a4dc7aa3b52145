"""The Triton backend. Triton is imported by the first call."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.memory import empty, ready
from detr_fast.ops.triton_launch import launch, power_of_two, target_starts

# eight numbers a lane of four warps; rows of more classes are taken in pieces
_BLOCK, _MOST_CLASSES = 1024, 1024
_BLOCK_T = 16


def forward(call: ClassLoss) -> Tensor:
    """[L] sums over queries, of checked arguments."""
    from detr_fast.ops.class_loss.triton_kernels import forward_kernel

    layers, images, queries, classes = call.logits.shape
    blocks = _blocks(queries, classes)
    # every program its own number, added up in a fixed order
    sums = empty((layers, images * -(-queries // blocks[1])), call.logits, torch.float32)
    if sums.numel():
        _launch(forward_kernel, call, blocks, sums)
    return sums.sum(1)


def backward(grad_loss: Tensor, call: ClassLoss) -> Tensor:
    """The gradient of the logits, in their dtype."""
    from detr_fast.ops.class_loss.triton_kernels import backward_kernel

    gradient = empty(call.logits.shape, call.logits)
    if gradient.numel():
        _launch(backward_kernel, call, _blocks(*call.logits.shape[2:]), gradient, ready(grad_loss))
    return gradient


def _blocks(queries: int, classes: int) -> tuple[int, int]:
    block_k = min(_MOST_CLASSES, power_of_two(classes))
    return block_k, min(_BLOCK // block_k, power_of_two(max(queries, 1)))


def _launch(
    kernel: object, call: ClassLoss, blocks: tuple[int, int], out: Tensor, *grad_loss: Tensor
) -> None:
    logits, labels, query, weights, num_targets, *_ = call
    block_k, block_q = blocks
    layers, images, queries, classes = logits.shape
    programs = layers * images * -(-queries // block_q)
    pointers = [out, *(ready(tensor) for tensor in (logits, labels, query))]
    # a kernel without weights reads nothing there
    pointers.append(pointers[2] if weights is None else ready(weights, torch.float32))
    first_target = target_starts(num_targets, logits.device)
    numbers = (images, queries, classes, labels.shape[0], *call.numbers)
    constants = (call.focal, call.constant, weights is not None, call.gamma == 2, block_q, block_k, _BLOCK_T)
    launch(kernel, programs, 4, (*pointers, first_target, *grad_loss, *numbers, *constants))
