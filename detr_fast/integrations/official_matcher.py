"""Matchers of facebookresearch/detr's form, also Deformable-DETR's and DINO's, by our operators."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_fast.integrations.swap import Replacement, combined
from detr_fast.matcher import HungarianMatcher

NAME = "HungarianMatcher"


class OfficialMatcher(Replacement):
    """`forward(outputs, targets)` with the weights that the matcher replaced has."""

    what = "matching in one call"
    classification: Literal["softmax", "focal"]

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        module: Any = self
        alpha = getattr(module, "focal_alpha", 0.25)
        weights = (module.cost_class, module.cost_bbox, module.cost_giou)
        return HungarianMatcher(*weights, self.classification, alpha)(outputs, targets)


def known(module: nn.Module) -> bool:
    """Whether a module is such a matcher, and not ours."""
    return (
        type(module).__name__ == NAME
        and not isinstance(module, (HungarianMatcher, OfficialMatcher))
        and all(hasattr(module, name) for name in ("cost_class", "cost_bbox", "cost_giou"))
    )


def choose(module: Any) -> type[Any] | str:
    """The class that a matcher gets, or the reason why it is left alone."""
    own: Any = type(module)
    names = list(inspect.signature(own.forward).parameters)[1:]
    if "forward" in module.__dict__:
        return "another forward is bound to the instance"
    if names != ["outputs", "targets"]:
        return f"unknown signature: expected forward(outputs, targets); got ({', '.join(names)})"
    outputs, targets = _example()
    try:
        expected = copy.deepcopy(module)(outputs, targets)
        for classification in ("softmax", "focal"):
            fast = combined(OfficialMatcher, own, ("classification", classification))
            twin = copy.deepcopy(module)
            twin.__class__ = fast
            pairs = zip(twin(outputs, targets), expected, strict=True)
            if all(
                torch.equal(x, y.cpu()) for ours, theirs in pairs for x, y in zip(ours, theirs, strict=True)
            ):
                return fast
    except Exception as error:  # whatever a matcher of an unknown version does, it is left alone
        return f"it could not be tried: {type(error).__name__}: {error}"
    return "its costs are neither DETR's nor Deformable DETR's"


def _example() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1

    outputs = {"pred_logits": torch.randn(2, 64, 20, generator=generator) * 3, "pred_boxes": boxes(2, 64)}
    return outputs, [{"labels": torch.arange(count) % 19, "boxes": boxes(count)} for count in (20, 30)]
