"""Criteria of facebookresearch/detr's form, around a matcher of that form.

DETR's and Deformable DETR's losses are computed whole by our operators. Of the others the criterion stays as
it is, and what it has matched one by one is matched in one call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.criterion import FocalSetCriterion, SetCriterion
from detr_fast.integrations.official_matcher import OfficialMatcher, Together, example
from detr_fast.integrations.swap import Replacement, argument_names, combined
from detr_fast.matcher import HungarianMatcher

_TOLERANCE = 1e-4  # of random inputs in float32


class MatchedTogether(Replacement):
    """A criterion whose matcher matches all outputs of one shape in one call."""

    what = "all outputs of one shape matched in one call; the criterion is unchanged"

    def forward(self, outputs: dict[str, Any], targets: Any, *args: Any, **kwargs: Any) -> Any:
        matcher: Any = self.matcher  # type: ignore[attr-defined]
        matcher.together = Together(targets, list(_predictions(outputs)))
        try:
            return super().forward(outputs, targets, *args, **kwargs)  # type: ignore[misc]
        finally:
            del matcher.together


class WholeCriterion(MatchedTogether):
    """The loss of DETR (softmax) or Deformable DETR (focal), of all layers at once."""

    what = "the whole detection loss, all decoder layers at once"

    def forward(self, outputs: dict[str, Any], targets: Any) -> dict[str, Tensor]:
        module: Any = self
        matcher, focal = module.matcher, module.matcher.classification == "focal"
        if unknown(outputs, "aux_outputs", *(("enc_outputs",) if focal else ())):
            return super().forward(outputs, targets)
        ours = HungarianMatcher(
            matcher.cost_class,
            matcher.cost_bbox,
            matcher.cost_giou,
            matcher.classification,
            getattr(matcher, "focal_alpha", 0.25),
        )
        criterion = (
            FocalSetCriterion(module.num_classes, ours, {}, module.focal_alpha, losses=module.losses)
            if focal
            else SetCriterion(module.num_classes, ours, {}, module.eos_coef, module.losses)
        )
        return criterion(outputs, targets)


_BOXES = ("pred_logits", "pred_boxes")


def known(module: nn.Module) -> bool:
    """Whether a module is such a criterion around a matcher of ours, and not replaced yet."""
    return (
        isinstance(getattr(module, "matcher", None), OfficialMatcher)
        and not isinstance(module, MatchedTogether)
        and argument_names(type(module).forward)[:2] == ["outputs", "targets"]
    )


def unknown(outputs: Mapping[str, Any], *names: str) -> bool:
    """Whether outputs hold more than predictions and these, such as denoising queries."""
    return any(not key.startswith("pred_") and key not in names for key in outputs)


def choose(module: Any) -> type[Any]:
    """The class that a criterion gets."""
    own: Any = type(module)
    whole = combined(WholeCriterion, own)
    return whole if _same_losses(module, whole) else combined(MatchedTogether, own)


def _same_losses(module: Any, whole: type[Any]) -> bool:
    """Whether the whole loss has the names and values of a criterion's, on a random input."""
    focal = module.matcher.classification == "focal"
    if set(getattr(module, "losses", ())) - {"labels", "boxes", "cardinality"}:
        return False
    if argument_names(type(module).forward) != ["outputs", "targets"]:
        return False
    try:
        twin = copy.deepcopy(module).cpu().float()
        twin.num_classes = 20 - (not focal)
        if hasattr(twin, "empty_weight"):
            twin.empty_weight = torch.ones(20)
            twin.empty_weight[-1] = twin.eos_coef
        outputs, targets = example(3)
        if focal:
            outputs["enc_outputs"] = example(2)[0]["aux_outputs"][0]
        for training in (False, True):  # some match groups of queries apart in training
            fast = copy.deepcopy(twin.train(training))
            fast.__class__ = whole
            with torch.no_grad():
                expected, got = twin(outputs, targets), fast(outputs, targets)
            if expected.keys() != got.keys() or not all(
                bool((x - got[key]).abs() <= _TOLERANCE * x.abs().clamp(min=1)) for key, x in expected.items()
            ):
                return False
    except Exception:  # whatever a criterion of another kind does, it goes on doing
        return False
    return True


def _predictions(outputs: Any) -> Iterator[Mapping[str, Any]]:
    """The outputs themselves and all within that have logits and boxes, but for denoising queries."""
    if isinstance(outputs, Mapping):
        if all(isinstance(outputs.get(key), Tensor) for key in _BOXES):
            yield outputs
        for key, value in outputs.items():
            if not str(key).startswith("dn_"):
                yield from _predictions(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _predictions(value)
