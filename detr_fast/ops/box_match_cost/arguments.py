"""The arguments of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class BoxCosts(NamedTuple):
    """The arguments of `box_match_cost`, in its order."""

    logits: Tensor
    boxes: Tensor
    target_labels: Tensor
    target_boxes: Tensor
    num_targets: Sequence[int]
    classification: str
    w_class: float
    w_l1: float
    w_giou: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.classification == "focal"

    @property
    def numbers(self) -> tuple[float, ...]:
        """The weights, alpha and gamma."""
        return self[6:]
