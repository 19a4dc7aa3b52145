"""Matchers of Mask2Former's, MaskFormer's and MaskDINO's form, and the criteria of the first two.

Random points are drawn in another order than upstream's, from the same distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.criterion import MaskFormerCriterion, MaskSetCriterion
from detr_fast.integrations import mask_losses, official_criterion, official_matcher
from detr_fast.integrations.swap import Replacement, argument_names, combined
from detr_fast.matcher import MaskMatcher, sampled_masks
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.mask_match_cost import mask_match_cost
from detr_fast.structures import MaskPredictions, Matches, PackedTargets

Indices = list[tuple[Tensor, Tensor]]
_ALL = ("cls", "box", "mask")
_POINTS = ("num_points", "oversample_ratio", "importance_sample_ratio")


class OfficialMaskMatcher(Replacement):
    """`forward(outputs, targets)` with the weights that the matcher replaced has."""

    what = official_matcher.OfficialMatcher.what

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]], *args: Any, **kwargs: Any
    ) -> Indices:
        module: Any = self
        packed = _packed(targets)
        if packed is None or getattr(module, "panoptic_on", False):
            return super().forward(outputs, targets, *args, **kwargs)  # type: ignore[misc]
        cost = args[0] if args else kwargs.get("cost", _ALL)
        if hasattr(module, "cost_box"):
            return _match_all(module, outputs, packed, cost).as_indices(packed)
        predictions = MaskPredictions(outputs["pred_logits"][None], outputs["pred_masks"][None])
        return mask_matcher(module).match(predictions, packed).as_indices(packed)


class WholeMaskCriterion(Replacement):
    """Mask2Former's or MaskFormer's criterion, all decoder layers and images compared together."""

    what = mask_losses.StackedMaskLoss.what

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        module: Any = self
        packed = _packed(targets)
        layers = [*outputs.get("aux_outputs", ()), outputs]
        unknown = official_criterion.unknown(outputs, "aux_outputs")
        if (
            packed is None
            or unknown
            or not all(mask_losses.fits(x["pred_masks"], packed, outputs["pred_masks"].shape) for x in layers)
        ):
            return super().forward(outputs, targets)  # type: ignore[misc]
        shared: Any = (module.num_classes, mask_matcher(module.matcher), {}, module.eos_coef, module.losses)
        criterion = (
            MaskSetCriterion(*shared, *(getattr(module, name) for name in _POINTS))
            if hasattr(module, "num_points")
            else MaskFormerCriterion(*shared)
        )
        logits, masks = (torch.stack([x[key] for x in layers]) for key in ("pred_logits", "pred_masks"))
        return criterion(MaskPredictions(logits, masks), packed)


def mask_matcher(module: Any) -> MaskMatcher:
    """Ours with the options of Mask2Former's or, without points, of MaskFormer's."""
    points = getattr(module, "num_points", 0)
    return MaskMatcher(
        module.cost_class, module.cost_mask, module.cost_dice, points, "bce" if points else "focal"
    )


def known(module: nn.Module) -> bool:
    """Whether a module is such a matcher, or a criterion around one of ours."""
    names = ("eos_coef", "num_classes", "losses")
    matcher = getattr(module, "matcher", None)
    if isinstance(matcher, OfficialMaskMatcher):
        return all(hasattr(module, name) for name in names)
    weights = ("cost_class", "cost_mask", "cost_dice")
    return (
        type(module).__name__ == official_matcher.NAME
        and not isinstance(module, MaskMatcher)
        and all(hasattr(module, name) for name in weights)
    )


def choose(module: Any) -> type[Any] | str:
    """The class that a matcher or criterion gets, or the reason why it is left alone."""
    own: Any = type(module)
    names = argument_names(own.forward)
    if names[:2] != ["outputs", "targets"] or not set(names[2:]) <= {"cost"}:
        return f"unknown signature: expected forward(outputs, targets); got ({', '.join(names)})"
    if hasattr(module, "matcher"):
        return _choose_criterion(module)
    outputs, targets = example()
    fast = combined(OfficialMaskMatcher, own)
    twin = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        expected = twin(outputs, targets)
        twin.__class__ = fast
        got = twin(outputs, targets)
    pairs = zip(got, expected, strict=True)
    if all(torch.equal(x, y) for ours, theirs in pairs for x, y in zip(ours, theirs, strict=True)):
        return fast
    return "its costs are not Mask2Former's, MaskFormer's or MaskDINO's"


def _choose_criterion(module: Any) -> type[Any] | str:
    own: Any = type(module)
    fast = combined(WholeMaskCriterion, own)
    twin = copy.deepcopy(module).cpu().float()
    at_points = hasattr(twin, "num_points")
    if at_points:
        twin.num_points = twin.matcher.num_points = 4096
    given = mask_losses.example(twin)
    layers = [
        {"pred_logits": x["class_queries_logits"], "pred_masks": x["masks_queries_logits"]}
        for x in (given, *given["auxiliary_predictions"])
    ]
    outputs = layers[0] | {"aux_outputs": layers[1:]}
    pairs = zip(given["class_labels"], given["mask_labels"], strict=True)
    targets = [{"labels": labels, "masks": masks} for labels, masks in pairs]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        expected = twin(outputs, targets)
        twin.__class__ = fast
        got = twin(outputs, targets)
    if mask_losses.same_losses(expected, got, at_points):
        return fast
    return "on a random input its losses are not those of Mask2Former or MaskFormer as we know them"


def _match_all(module: Any, outputs: Mapping[str, Any], targets: PackedTargets, cost: Any) -> Matches:
    """MaskDINO's sum of focal, box and mask costs (arXiv:2206.02777, section 3.3)."""
    logits, boxes = outputs["pred_logits"].detach()[None], outputs["pred_boxes"].detach()[None]
    boxed = "box" in cost
    costs = box_match_cost(
        logits,
        boxes,
        targets.labels,
        targets.boxes,
        targets.num_targets,
        classification="focal",
        w_class=module.cost_class,
        w_l1=module.cost_box if boxed else 0.0,
        w_giou=module.cost_giou if boxed else 0.0,
    )
    if "mask" in cost:
        masks = outputs["pred_masks"].detach()[None]
        points = torch.rand(1, masks.shape[1], module.num_points, 2, device=masks.device)
        found, wanted = sampled_masks(MaskPredictions(logits, masks), targets, slice(0, 1), points)
        costs = costs + mask_match_cost(
            logits,
            found,
            targets.labels,
            wanted,
            targets.num_targets,
            w_class=0.0,
            w_mask=module.cost_mask,
            w_dice=module.cost_dice,
        )
    return Matches(linear_assignment(costs, targets.num_targets))


def _packed(targets: Sequence[Mapping[str, Tensor]]) -> PackedTargets | None:
    boxes = [x["boxes"] for x in targets] if all("boxes" in x for x in targets) else None
    return mask_losses.packed([x["masks"] for x in targets], [x["labels"] for x in targets], boxes)


def example() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Random outputs and targets, masks alike everywhere, so that no cost depends on the points."""
    outputs, targets = official_matcher.example()
    # no label twice: of two targets that differ in nothing, which gets a query is left open
    targets = [{key: x[:18] for key, x in target.items()} for target in targets]
    generator = torch.Generator().manual_seed(1)
    outputs["pred_masks"] = torch.randn(2, 64, 1, 1, generator=generator).repeat(1, 1, 4, 6) * 2
    for target in targets:
        count = len(target["labels"])
        target["masks"] = (torch.rand(count, 1, 1, generator=generator) < 0.5).repeat(1, 8, 12)
    return outputs, targets
