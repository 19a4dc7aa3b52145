"""The mask criteria of transformers, all layers in one call.

Mask2Former's, OneFormer's, EoMT's and VidEoMT's compare masks at points, MaskFormer's whole maps.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.criterion import MaskFormerCriterion, MaskSetCriterion
from detr_fast.criterion.base import StackedCriterion
from detr_fast.integrations.swap import Replacement, combined
from detr_fast.matcher import MaskMatcher
from detr_fast.structures import MaskPredictions, PackedTargets

_NEEDED = {
    "masks_queries_logits",
    "class_queries_logits",
    "mask_labels",
    "class_labels",
    "auxiliary_predictions",
}
_SHARED = ("matcher", "eos_coef", "empty_weight")
_COSTS = ("cost_class", "cost_mask", "cost_dice")
_POINTS = ("num_points", "oversample_ratio", "importance_sample_ratio")
_CONTRASTIVE = {"contrastive_queries_logits", "text_queries", "calculate_contrastive_loss"}


class StackedMaskLoss(Replacement):
    """A mask criterion with all layers and images matched and compared together.

    Random points are drawn in another order than upstream's, from the same distribution. Masks whose
    labels are not 0 and 1 everywhere, or are not padded as the images are, go to the criterion replaced; on a
    GPU, where looking would stall the queue, labels are taken for 0 and 1.
    """

    what = "the whole mask loss, all decoder layers at once"
    positions: tuple[str, ...]
    """The names of the replaced forward's arguments, in its order."""

    @classmethod
    def attributes(cls, replaced: Any) -> dict[str, Any]:
        return {"positions": tuple(inspect.signature(replaced.forward).parameters)[1:]}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        given = dict(zip(self.positions, args, strict=False)) | kwargs
        layers = [*(given.get("auxiliary_predictions") or ()), given]
        targets = packed(given["mask_labels"], given["class_labels"])
        shape = given["masks_queries_logits"].shape
        if targets is None or not all(fits(x["masks_queries_logits"], targets, shape) for x in layers):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        logits, masks = (
            torch.stack([layer[key] for layer in layers])
            for key in ("class_queries_logits", "masks_queries_logits")
        )
        module: Any = self
        num_masks = module.get_num_masks(given["class_labels"], device=logits.device)
        losses = {}
        for name, loss in _criterion(module, num_masks)(MaskPredictions(logits, masks), targets).items():
            # copied, as models weigh them in place and views of one tensor refuse that
            shape = () if name.startswith("loss_ce") else num_masks.shape
            losses[name.replace("loss_ce", "loss_cross_entropy")] = loss.clone().view(shape)
        if given.get("calculate_contrastive_loss", "text_queries" in given):
            losses |= module.loss_contrastive(given["contrastive_queries_logits"], given["text_queries"])
        return losses


class _Normalised(StackedCriterion):
    """Normalised by a given number of masks."""

    num_masks: Tensor

    def _normalizers(
        self, targets: PackedTargets, joined_num_targets: Sequence[int] | None, logits: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        queries = logits.shape[2]
        matched = sum(min(count, queries) for count in targets.num_targets)
        return self.num_masks, matched + self.eos_coef * (len(targets) * queries - matched)


class _AtPoints(_Normalised, MaskSetCriterion):
    pass


class _OfMaps(_Normalised, MaskFormerCriterion):
    pass


def known(module: nn.Module) -> bool:
    """Whether a module is a mask criterion of transformers, replaced or not."""
    place = type(module).__module__.partition(".")[0]
    if place not in ("transformers", "transformers_modules") or not _has(module, _SHARED):
        return False
    points = _POINTS if _at_points(module) else ()
    return _has(module, points) and _has(module.matcher, _COSTS + points[:1])


def _has(part: Any, names: Sequence[str]) -> bool:
    return all(hasattr(part, name) for name in names)


def _at_points(module: Any) -> bool:
    return hasattr(module, "num_points")


def choose(module: Any) -> type[Any] | str:
    """The class that a mask criterion gets, or the reason why it is left alone."""
    own: Any = type(module)
    names = set(inspect.signature(own.forward).parameters) - {"self"}
    if names not in (_NEEDED, _NEEDED | _CONTRASTIVE):
        return f"unknown signature: expected forward with {', '.join(sorted(_NEEDED))}; got {sorted(names)}"
    fast = combined(StackedMaskLoss, own)
    twin = copy.deepcopy(module).cpu().float()
    if _at_points(twin):
        twin.num_points = twin.matcher.num_points = 4096
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        given = example(twin)
        expected = twin(**given)
        twin.__class__ = fast
        got = twin(**given)
    if not same_losses(expected, got, at_points=_at_points(twin)):
        family = "Mask2Former" if _at_points(twin) else "MaskFormer"
        return f"on a random input its losses are not those of {family} as we know them"
    return fast


def _criterion(module: Any, num_masks: Tensor) -> _AtPoints | _OfMaps:
    """Ours with the options of one of transformers'."""
    matcher = module.matcher
    weights = (matcher.cost_class, matcher.cost_mask, matcher.cost_dice)
    classes, eos_coef = module.empty_weight.numel() - 1, module.eos_coef
    criterion: _AtPoints | _OfMaps
    if _at_points(module):
        criterion = _AtPoints(
            classes,
            MaskMatcher(*weights, matcher.num_points),
            {},
            eos_coef,
            num_points=module.num_points,
            oversample_ratio=module.oversample_ratio,
            importance_ratio=module.importance_sample_ratio,
        )
    else:
        criterion = _OfMaps(classes, MaskMatcher(*weights, 0, "focal"), {}, eos_coef)
    criterion.num_masks = num_masks.view(())
    return criterion


def packed(
    masks: Sequence[Tensor], labels: Sequence[Tensor], boxes: Sequence[Tensor] | None = None
) -> PackedTargets | None:
    """The targets packed; None where masks are soft or of several sizes."""
    if len({mask.shape[1:] for mask in masks}) != 1:
        return None
    inside = [mask != 0 for mask in masks]
    pairs = zip(masks, inside, strict=True)
    if any(x.is_floating_point() and not x.is_cuda and not torch.equal(x, y.to(x.dtype)) for x, y in pairs):
        return None
    boxes = boxes or [torch.zeros(len(label), 4, device=label.device) for label in labels]
    return PackedTargets.from_list(
        [
            {"labels": label, "boxes": box, "masks": mask}
            for label, box, mask in zip(labels, boxes, inside, strict=True)
        ]
    )


def fits(masks: Tensor, targets: PackedTargets, last: torch.Size) -> bool:
    """Whether masks [B, Q, h, w] have the last layer's shape, a whole number of times that of the targets."""
    assert targets.masks is not None
    (height, width), (h, w) = targets.masks.shape[1:], masks.shape[-2:]
    stride = max(-(-height // h), -(-width // w))
    return masks.shape == last and ((-(-height // stride), -(-width // stride)) == (h, w))


def example(module: Any) -> dict[str, Any]:
    """Random predictions whose matching leaves no doubt, and targets."""
    generator = torch.Generator().manual_seed(0)
    classes, targets, queries = module.empty_weight.numel(), (3, 4), 9
    labels = torch.arange(max(targets)) % max(1, classes - 1)
    masks = torch.rand(max(targets), 32, 48, generator=generator) < 0.5

    def predictions() -> dict[str, Tensor]:
        logits = torch.randn(2, queries, classes, generator=generator)
        logits[:, torch.arange(len(labels)), labels] += 8
        found = torch.randn(2, queries, 32, 48, generator=generator)
        found[:, : len(masks)] += 8 * masks - 4
        return {"class_queries_logits": logits, "masks_queries_logits": found}

    given: dict[str, Any] = predictions() | {"auxiliary_predictions": [predictions(), predictions()]}
    given["class_labels"] = [labels[:count] for count in targets]
    given["mask_labels"] = [masks[:count].float() for count in targets]
    if hasattr(module, "loss_contrastive"):
        given["contrastive_queries_logits"] = torch.randn(2, queries, 8, generator=generator)
        given["text_queries"] = torch.randn(2, queries, 8, generator=generator)
    return given


def same_losses(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], at_points: bool) -> bool:
    """Whether losses are equal, those of masks at random points but for the noise of their draws."""
    noisy = ("loss_mask", "loss_dice") if at_points else ()
    return expected.keys() == got.keys() and all(
        _close(x, got[key], 0.05 if key.startswith(noisy) else 1e-4) for key, x in expected.items()
    )


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    return x.shape == y.shape and bool(((x - y).abs() <= tolerance * x.abs()).all())
