"""What the costs are made of."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The options of `box_match_cost`, checked."""

    class_cost: str
    w_class: float
    w_l1: float
    w_giou: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.class_cost == "focal"
