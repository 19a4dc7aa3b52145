"""The CUDA backend: all layers and images in one launch; a second only looks for non-finite costs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.available import KERNEL_FLOATS
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.memory import device_and_stream, empty, run


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(self, call: MaskCosts) -> Tensor:
        """[..., sumT, Q] costs of checked arguments."""
        logits, mask_values, target_labels, target_values, num_targets, *_ = call
        *layers, images, queries, classes = logits.shape
        if mask_values.dtype not in KERNEL_FLOATS:
            mask_values = mask_values.float()
        if target_values.dtype == torch.float64:
            target_values = target_values.float()
        costs = empty((*layers, target_labels.shape[0], queries), logits, torch.float32)
        if costs.numel():
            kernels, depth = self._module(), layers[0] if layers else 1
            flags = kernels.mask_match_cost_cuda_flags(depth, images, queries)
            run(
                kernels.mask_match_cost_cuda,
                num_targets,
                depth,
                queries,
                classes,
                mask_values.shape[-1],
                target_values.ndim == 3,
                logits,
                mask_values,
                target_labels,
                target_values,
                call.focal,
                *call.numbers,
                costs,
                empty((flags,), logits, torch.int32),
                *device_and_stream(logits),
            )
        return costs


BACKEND = Cuda(extension.extension)
