"""A pytest plugin, `-p tests.fake_cuda`: collects what a machine with a GPU would run; nothing can run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from detr_fast.ops.operator import ORDER, Operator

CARD = SimpleNamespace(name="no GPU", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)


def _explain(
    self: Operator, device: torch.device, dtype: torch.dtype, shape_key: Any = None
) -> dict[str, str | None]:
    """Every GPU backend serves the device, except float64."""
    served = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}[device.type] if dtype != torch.float64 else ()
    reasons = {name: None if name in served or name == "reference" else "not collected" for name in ORDER}
    return reasons | {name: "none" for name in ORDER if name not in self.backends}


torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_properties = lambda device=None: CARD
torch.cuda.get_device_capability = lambda device=None: (CARD.major, CARD.minor)
torch.cuda.get_device_name = lambda device=None: CARD.name
Operator.explain = _explain
