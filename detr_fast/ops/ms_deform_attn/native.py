"""The compiled CPU backend."""

from __future__ import annotations

import torch


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
    return "in work"
