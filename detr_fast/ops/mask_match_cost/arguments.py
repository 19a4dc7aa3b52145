"""The arguments of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class MaskCosts(NamedTuple):
    """The arguments of `mask_match_cost`, in its order."""

    logits: Tensor
    mask_values: Tensor
    target_labels: Tensor
    target_values: Tensor
    num_targets: Sequence[int]
    mask_cost: str
    w_class: float
    w_mask: float
    w_dice: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.mask_cost == "focal"

    @property
    def numbers(self) -> tuple[float, ...]:
        """The weights, alpha and gamma."""
        return self[6:]
