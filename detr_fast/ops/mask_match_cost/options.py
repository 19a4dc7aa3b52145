"""What the costs are made of."""

from __future__ import annotations

from typing import NamedTuple


class MaskCostOptions(NamedTuple):
    """The options of `mask_match_cost`, checked."""

    mask_cost: str
    w_class: float
    w_mask: float
    w_dice: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.mask_cost == "focal"
