"""Matchers of facebookresearch/detr's form; Deformable-DETR's, DINO's, detrex's, RT-DETR's and rfdetr's are.

Their costs are read off their attributes, whether softmax or focal off what they match on a random input.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_fast.integrations.losses import match_layers
from detr_fast.integrations.swap import Replacement, argument_names, combined
from detr_fast.matcher import HungarianMatcher

NAME = "HungarianMatcher"
Indices = list[tuple[Tensor, Tensor]]
_WEIGHTS = ("cost_class", "cost_bbox", "cost_giou")
_OPTIONAL = {"return_topk", "group_detr", "target_side_safety"}


@dataclass
class Together:
    """Outputs that a criterion will have matched one by one, for the first call to match all of one shape."""

    targets: Any
    layers: list[Mapping[str, Any]]
    found: dict[int, Indices] = field(default_factory=dict)


class OfficialMatcher(Replacement):
    """`forward(outputs, targets)` with the weights that the matcher replaced has."""

    what = "matching in one call"
    classification: Literal["softmax", "focal"]
    in_dict = False
    positions: tuple[str, ...]
    together: Together | None = None

    @classmethod
    def attributes(cls, replaced: Any) -> dict[str, Any]:
        return {"positions": tuple(argument_names(replaced.forward))}

    def forward(self, *args: Any, **kwargs: Any) -> Indices | dict[str, Indices]:
        given = dict(zip(self.positions, args, strict=False)) | kwargs
        outputs, targets = given["outputs"], given["targets"]
        if given.get("return_topk") or self._compares_more(outputs, targets):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        indices = self._found(outputs, targets, given.get("group_detr", 1))
        return {"indices": indices} if self.in_dict else indices

    def _compares_more(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> bool:
        """Whether rfdetr would compare masks or keypoints too."""
        kinds = ("masks", "keypoints") if hasattr(self, "cost_mask_ce") else ()
        return any(f"pred_{kind}" in outputs and any(kind in x for x in targets) for kind in kinds)

    def _found(self, outputs: Mapping[str, Any], targets: Any, groups: int) -> Indices:
        together, key = self.together, id(outputs["pred_logits"])
        if together is None or together.targets is not targets or not _listed(outputs, together.layers):
            return self.match([outputs], targets, groups)[key]
        if key not in together.found:
            alike = [x for x in together.layers if _shapes(x) == _shapes(outputs)]
            together.found |= self.match(alike, targets, groups)
        return together.found[key]

    def match(
        self, layers: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Tensor]], groups: int = 1
    ) -> dict[int, Indices]:
        """Matches outputs of one shape at once, by the id of their logits."""
        module: Any = self
        weights = SimpleNamespace(
            class_cost=module.cost_class,
            bbox_cost=module.cost_bbox,
            giou_cost=module.cost_giou,
            alpha=getattr(module, "focal_alpha", getattr(module, "alpha", 0.25)),
            gamma=getattr(module, "gamma", 2.0),
        )
        return match_layers(
            weights,
            [{"logits": x["pred_logits"], "pred_boxes": x["pred_boxes"]} for x in layers],
            [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in targets],
            groups,
            self.classification,
        )


def known(module: nn.Module) -> bool:
    """Whether a module is such a matcher, and not ours."""
    return (
        type(module).__name__ == NAME
        and not isinstance(module, (HungarianMatcher, OfficialMatcher))
        and all(hasattr(module, name) for name in _WEIGHTS)
        and not hasattr(module, "cost_mask")
    )


def choose(module: Any) -> type[Any] | str:
    """The class that a matcher gets, or the reason why it is left alone."""
    own: Any = type(module)
    names = argument_names(own.forward)
    if names[:2] != ["outputs", "targets"] or not set(names[2:]) <= _OPTIONAL:
        return f"unknown signature: expected forward(outputs, targets); got ({', '.join(names)})"
    outputs, targets = example()
    expected = copy.deepcopy(module)(outputs, targets)
    in_dict = isinstance(expected, dict)
    for classification in ("softmax", "focal"):
        fast = combined(OfficialMatcher, own, ("classification", classification), ("in_dict", in_dict))
        twin = copy.deepcopy(module)
        twin.__class__ = fast
        ours, theirs = (x["indices"] if in_dict else x for x in (twin(outputs, targets), expected))
        pairs = zip(ours, theirs, strict=True)
        if all(torch.equal(x, y.cpu()) for pair in pairs for x, y in zip(*pair, strict=True)):
            return fast
    return "its costs are neither DETR's nor Deformable DETR's"


def example(layers: int = 1) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Random outputs of 20 logits, earlier layers where asked for, and targets; the same in each call."""
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1

    outputs, *earlier = (
        {"pred_logits": torch.randn(2, 64, 20, generator=generator) * 3, "pred_boxes": boxes(2, 64)}
        for _ in range(layers)
    )
    targets = [{"labels": torch.arange(count) % 19, "boxes": boxes(count)} for count in (20, 30)]
    return outputs | ({"aux_outputs": earlier} if earlier else {}), targets


def _listed(outputs: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> bool:
    return any(all(outputs[key] is x[key] for key in ("pred_logits", "pred_boxes")) for x in layers)


def _shapes(outputs: Mapping[str, Any]) -> list[torch.Size]:
    return [outputs[key].shape for key in ("pred_logits", "pred_boxes")]
