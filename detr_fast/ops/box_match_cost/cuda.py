"""The CUDA backend: all layers and images in one launch; a second only looks for non-finite costs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.memory import device_and_stream, empty, ready


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(self, call: BoxCosts) -> Tensor:
        """[..., sumT, Q] costs of checked arguments."""
        logits, boxes, target_labels, target_boxes, num_targets, *_ = call
        *layers, images, queries, classes = logits.shape
        boxes_dtype = boxes.dtype if boxes.dtype == logits.dtype else torch.float32
        logits, boxes, target_labels = ready(logits), ready(boxes, boxes_dtype), ready(target_labels)
        target_boxes = ready(target_boxes, torch.float32)
        shape = (*layers, target_labels.shape[0], queries)
        costs = empty(shape, logits, torch.float32)
        if costs.numel():
            kernels, depth = self._module(), layers[0] if layers else 1
            flags = kernels.box_match_cost_cuda_flags(depth, images, queries)
            non_finite = empty((flags,), logits, torch.int32)
            kernels.box_match_cost_cuda(
                num_targets,
                depth,
                queries,
                classes,
                logits,
                boxes,
                target_labels,
                target_boxes,
                call.focal,
                *call.numbers,
                costs,
                non_finite,
                *device_and_stream(logits),
            )
        return costs


BACKEND = Cuda(extension.extension)
