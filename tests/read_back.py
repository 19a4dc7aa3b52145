"""Proof on a CPU that code would not wait for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique")


class NoReadBack(TorchDispatchMode):
    """Refuses what makes the host wait: reading a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in WAITING), func
        if "index" in str(func):
            indices = [leaf for leaf in tree_leaves(args)[1:] if isinstance(leaf, Tensor)]
            assert not any(index.dtype == torch.bool for index in indices), func
        return func(*args, **(kwargs or {}))
