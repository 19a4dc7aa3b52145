"""What the loss is made of."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The options of `class_loss`, checked."""

    kind: str
    no_object: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.kind == "focal"

    def objects(self, classes: int) -> int:
        """How many of the classes a target may have."""
        return classes if self.focal else classes - 1
