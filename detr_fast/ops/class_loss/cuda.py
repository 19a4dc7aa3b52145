"""The CUDA backend: a launch each way; targets' places travel with it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.memory import device_and_stream, empty, run


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(self, call: ClassLoss) -> Tensor:
        """[L] sums over queries, of checked arguments."""
        layers, images, queries, _ = call.logits.shape
        kernels = self._module()
        # every block its own number, added up in a fixed order
        sums = empty((layers, kernels.class_loss_cuda_sums(images, queries)), call.logits, torch.float32)
        run(kernels.class_loss_cuda_fwd, *_given(call), sums, *device_and_stream(call.logits))
        return sums.sum(1)

    def backward(self, grad_loss: Tensor, call: ClassLoss) -> Tensor:
        """The gradient of the logits, in their dtype."""
        gradient = empty(call.logits.shape, call.logits)
        outputs = (grad_loss, gradient, *device_and_stream(call.logits))
        run(self._module().class_loss_cuda_bwd, *_given(call), *outputs)
        return gradient


def _given(call: ClassLoss) -> tuple[Any, ...]:
    logits, labels, query, weights, num_targets, *_ = call
    layers, _, queries, classes = logits.shape
    weights = None if weights is None else weights.float()
    tensors = (logits, labels, query, weights)
    return num_targets, layers, queries, classes, *tensors, call.focal, call.constant, *call.numbers


BACKEND = Cuda(extension.extension)
