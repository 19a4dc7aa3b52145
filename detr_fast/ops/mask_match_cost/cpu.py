"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.mask_match_cost.terms import Terms
from detr_fast.ops.match_cost import check_labels

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as enum FloatType in csrc
_TARGET_DTYPES = {**_DTYPES, torch.uint8: 3, torch.bool: 3}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot take tensors of `device` and `dtype`, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    if dtype not in _DTYPES:
        return f"computes in float32, not in {dtype}"
    return extension.why_not()


def mask_match_cost(
    logits: Tensor,
    mask_values: Tensor,
    target_labels: Tensor,
    target_values: Tensor,
    sizes: Sequence[int],
    terms: Terms,
) -> Tensor:
    """[..., sumT, Q] costs; arguments as the public function's, already checked."""
    *layers, _, queries, classes = logits.shape
    check_labels(target_labels, classes)
    if mask_values.dtype not in _DTYPES:
        mask_values = mask_values.float()
    if target_values.dtype not in _TARGET_DTYPES:
        target_values = target_values.float()
    # named, so that copies outlive the call
    logits, mask_values = logits.contiguous(), mask_values.contiguous()
    target_labels, target_values = target_labels.contiguous(), target_values.contiguous()
    costs = torch.empty((*layers, target_labels.shape[0], queries), dtype=torch.float32, device="cpu")
    extension.extension().mask_match_cost(
        logits.data_ptr(),
        _DTYPES[logits.dtype],
        mask_values.data_ptr(),
        _DTYPES[mask_values.dtype],
        target_labels.data_ptr(),
        target_values.data_ptr(),
        _TARGET_DTYPES[target_values.dtype],
        target_values.ndim == 3,
        sizes,
        layers[0] if layers else 1,
        queries,
        classes,
        mask_values.shape[-1],
        terms.focal,
        *terms[1:],
        costs.data_ptr(),
        torch.get_num_threads(),
    )
    return costs
