"""What the loss is made of."""

from __future__ import annotations

from typing import NamedTuple


class ClassLossOptions(NamedTuple):
    """The options of `class_loss`, checked."""

    classification: str
    eos_coef: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.classification == "focal"

    def objects(self, classes: int) -> int:
        """How many of the classes a target may have."""
        return classes if self.focal else classes - 1
