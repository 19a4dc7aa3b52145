"""What the costs are made of."""

from __future__ import annotations

from typing import NamedTuple


class BoxCostOptions(NamedTuple):
    """The options of `box_match_cost`, checked."""

    classification: str
    w_class: float
    w_l1: float
    w_giou: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.classification == "focal"
