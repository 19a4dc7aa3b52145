"""The arguments of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class ClassLoss(NamedTuple):
    """The arguments of `class_loss`, in its order."""

    logits: Tensor
    labels: Tensor
    query: Tensor
    target_weights: Tensor | None
    num_targets: Sequence[int]
    classification: str
    eos_coef: float
    alpha: float
    gamma: float

    @property
    def focal(self) -> bool:
        return self.classification != "softmax"

    @property
    def constant(self) -> bool:
        """Whether the gradient takes the weights of unwanted classes for constants."""
        return self.classification == "varifocal"

    @property
    def objects(self) -> int:
        """How many of the logits' classes a target may have."""
        return self.logits.shape[-1] - (0 if self.focal else 1)

    @property
    def numbers(self) -> tuple[float, ...]:
        """eos_coef, alpha and gamma."""
        return self[6:]
