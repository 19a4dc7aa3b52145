"""The CUDA backend: a launch each way; targets' places travel with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import device_and_stream, empty, run


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(
        self, boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]
    ) -> Tensor:
        """[2, L] sums over matched pairs; arguments as the public function's, already checked."""
        losses = empty((2, boxes.shape[0]), boxes, torch.float32)
        given = _given(boxes, target_boxes, query, num_targets)
        run(self._module().box_loss_cuda_fwd, *given, losses, *device_and_stream(boxes))
        return losses

    def backward(
        self,
        grad_losses: Tensor,
        boxes: Tensor,
        target_boxes: Tensor,
        query: Tensor,
        num_targets: Sequence[int],
    ) -> Tensor:
        """The gradient of the boxes, in their dtype."""
        gradient = empty(boxes.shape, boxes)
        given = _given(boxes, target_boxes, query, num_targets)
        run(self._module().box_loss_cuda_bwd, *given, grad_losses, gradient, *device_and_stream(boxes))
        return gradient


def _given(boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]) -> tuple[Any, ...]:
    return num_targets, boxes.shape[0], boxes.shape[2], boxes, target_boxes.float(), query


BACKEND = Cuda(extension.extension)
