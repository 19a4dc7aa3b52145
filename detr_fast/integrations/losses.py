"""The detection losses of transformers, with all decoder layers matched in one call.

DETR's and Deformable DETR's are computed whole by our operators. Of the others, the criterion stays as it is
but for its matching and those of its terms that we have (`terms.py`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_fast.integrations import terms
from detr_fast.integrations.match_costs import mask_costs, phrase_costs
from detr_fast.integrations.swap import Replacement, combined, with_globals
from detr_fast.ops.box_loss import box_loss
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.class_loss import class_loss
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.structures import Matches, PackedTargets

Classification = Literal["softmax", "focal"]
Targets = Sequence[Mapping[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]
_TOLERANCE = 1e-4  # of random inputs in float32


class FastLoss:
    """Base of what stands in a model's `loss_function`; pickles by the name of the function replaced."""

    what: str

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original


class WholeLoss(FastLoss):
    """The loss of DETR (softmax) or Deformable DETR (focal), of all layers at once."""

    what = "the whole detection loss, all decoder layers at once"

    def __init__(self, original: Callable[..., Any], classification: Classification) -> None:
        super().__init__(original)
        self.classification: Classification = classification

    def __call__(
        self,
        logits: Tensor,
        labels: Targets,
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor | Sequence[Tensor] | None = None,
        outputs_coord: Tensor | Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
        """Total, named losses and earlier layers, as the function replaced returns them."""
        earlier = None
        if config.auxiliary_loss:
            assert outputs_class is not None
            assert outputs_coord is not None
            pairs = zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
            earlier = [{"logits": x, "pred_boxes": boxes} for x, boxes in pairs]
        layers = [*(earlier or ()), {"logits": logits, "pred_boxes": pred_boxes}]
        scores, boxes = (
            torch.stack([layer[key] for layer in layers]).to(torch.promote_types(like.dtype, torch.float32))
            for key, like in (("logits", logits), ("pred_boxes", pred_boxes))
        )
        targets = packed(labels)
        query = match(scores.detach(), boxes.detach(), targets, config, self.classification)

        num_boxes = _mean_targets(sum(targets.num_targets), logits.device)
        images, queries = logits.shape[:2]
        matched = sum(min(count, queries) for count in targets.num_targets)
        focal = self.classification == "focal"
        if focal:
            sums = class_loss(
                scores,
                targets.labels,
                query,
                targets.num_targets,
                classification="focal",
                alpha=config.focal_alpha,
            )
            loss_ce = sums / num_boxes
        else:
            weight = config.eos_coefficient
            sums = class_loss(scores, targets.labels, query, targets.num_targets, eos_coef=weight)
            loss_ce = sums / (matched + weight * (images * queries - matched))
        loss_bbox, loss_giou = box_loss(boxes, targets.boxes, query, targets.num_targets) / num_boxes
        with torch.no_grad():
            found = scores.amax(-1).sigmoid() > 0.5 if focal else scores.argmax(-1) != scores.shape[-1] - 1
            present = torch.tensor(targets.num_targets, device=scores.device)
            error = (found.sum(-1) - present).abs().to(scores.dtype).mean(1)

        named = {
            "loss_ce": loss_ce,
            "loss_bbox": loss_bbox,
            "loss_giou": loss_giou,
            "cardinality_error": error,
        }
        last = len(layers) - 1
        losses = {
            f"{name}{'' if layer == last else f'_{layer}'}": values[layer]
            for layer in (last, *range(last))
            for name, values in named.items()
        }
        # as upstream, layers beyond those of the configuration have no weight
        weighed = [layer for layer in range(last) if layer < config.decoder_layers - 1] + [last]
        weights = (1, config.bbox_loss_coefficient, config.giou_loss_coefficient)
        terms = (loss_ce, loss_bbox, loss_giou)
        return sum(w * x[weighed].sum() for w, x in zip(weights, terms, strict=True)), losses, earlier


class OneMatch(FastLoss):
    """Any of the other losses: its criterion, but for the matching of all layers in one call and known terms.

    Args:
        original: the loss replaced.
        classification: the class cost, see `match_layers`.
        known: the terms that our operators compute, some of `terms.TERMS`.
    """

    def __init__(
        self, original: Callable[..., Any], classification: Classification | None, known: tuple[str, ...]
    ) -> None:
        super().__init__(original)
        self.classification, self.known = classification, known
        ours = f"its losses {', '.join(known)}" if known else "none of its losses"
        self.what = f"all decoder layers matched in one call, {ours} replaced"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, criterion = criterion_class(self.original)
        options = (("classification", self.classification), ("known", self.known))
        fast = combined(FastCriterion, criterion, *options)
        return with_globals(self.original, **{name: fast})(*args, **kwargs)


class FastCriterion(Replacement):
    """A criterion whose matcher finds what one call matched for all layers before, and known terms."""

    what = "all decoder layers matched in one call"
    classification: Classification | None
    known: tuple[str, ...]

    def get_loss(
        self, loss: str, outputs: Any, targets: Targets, indices: Indices, num_boxes: float
    ) -> dict[str, Tensor]:
        if loss in self.known:
            return terms.compute(loss, self, outputs, targets, indices, num_boxes)
        return super().get_loss(loss, outputs, targets, indices, num_boxes)  # type: ignore[misc]

    def forward(self, outputs: dict[str, Any], targets: Targets) -> Any:
        module: Any = self
        layers = [outputs, *outputs.get("auxiliary_outputs", ())]
        if "enc_outputs" in outputs:
            layers.append(outputs["enc_outputs"])
        matcher = module.matcher
        module.matcher = _FoundBefore(matcher, layers, self.classification)
        try:
            return super().forward(outputs, targets)  # type: ignore[misc]
        finally:
            module.matcher = matcher


class _FoundBefore(nn.Module):
    """Takes a matcher's place for one call of a criterion."""

    def __init__(
        self, matcher: Any, layers: list[dict[str, Any]], classification: Classification | None
    ) -> None:
        super().__init__()
        self.matcher, self.layers, self.classification = matcher, layers, classification
        self.found: dict[int, Indices] | None = None

    def forward(self, outputs: Mapping[str, Any], targets: Targets, *groups: int, **named: int) -> Indices:
        if self.found is None:
            parts = groups[0] if groups else named.get("group_detr", 1)
            alike = [x for x in self.layers if x["logits"].shape == outputs["logits"].shape]
            self.found = match_layers(self.matcher, alike, targets, parts, self.classification)
        found = self.found.get(id(outputs["logits"]))
        return self.matcher(outputs, targets, *groups, **named) if found is None else found


def match_layers(
    matcher: Any,
    layers: Sequence[Mapping[str, Any]],
    targets: Targets,
    groups: int = 1,
    classification: Classification | None = "softmax",
) -> dict[int, Indices]:
    """Matches outputs of one shape, each as the matcher would, by the id of their logits.

    Args:
        matcher: with the weights `class_cost`, `bbox_cost`, `giou_cost` and maybe `alpha`, `gamma`.
        layers: each with `logits` [B, Q, K] and `pred_boxes` [B, Q, 4] and, for `classification` None, with
            `label_maps`, one [phrases, K] an image; where the matcher compares masks, `pred_masks`.
        targets: for each image `class_labels` [T] and `boxes` [T, 4], maybe `masks` [T, H, W].
        groups: queries are matched in so many parts, each with all targets.
        classification: the class cost, or None: the mean focal cost over the tokens of the target's phrase.

    Returns:
        For the id of each layer's logits, for each image (query indices, target indices) on the CPU.
    """
    logits, boxes = (
        torch.stack([layer[key].detach() for layer in layers]).unflatten(2, (groups, -1))
        for key in ("logits", "pred_boxes")
    )
    # the parts become layers of their own: [L * G, B, Q / G, ...]
    logits, boxes = (x.transpose(1, 2).flatten(0, 1) for x in (logits, boxes))
    packs, extra = packed(targets), None
    if classification is None:
        labels = [target["class_labels"] for target in targets]
        extra = matcher.class_cost * phrase_costs(logits, layers[0], labels, packs)
    elif hasattr(matcher, "mask_point_sample_ratio"):
        masks = torch.cat([target["masks"] for target in targets])
        extra = mask_costs(matcher, layers, masks, packs, groups)
    matches = Matches(match(logits, boxes, packs, matcher, classification, extra))
    queries = logits.shape[2]
    found = {}
    for i, layer in enumerate(layers):
        parts = [matches.as_indices(packs, i * groups + part) for part in range(groups)]
        found[id(layer["logits"])] = [
            (
                torch.cat([query + part * queries for part, (query, _) in enumerate(image)]),
                torch.cat([target for _, target in image]),
            )
            for image in zip(*parts, strict=True)
        ]
    return found


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: PackedTargets,
    weights: Any,
    classification: Classification | None,
    extra: Tensor | None = None,
) -> Tensor:
    """The query of each target, [L, sumT], of logits [L, B, Q, K] and boxes [L, B, Q, 4].

    Args:
        logits: of all layers.
        boxes: (cx, cy, w, h) of all layers.
        targets: of the images.
        weights: anything with `class_cost`, `bbox_cost`, `giou_cost` and maybe `alpha`, `gamma`.
        classification: the class cost; None: none.
        extra: [L, sumT, Q], costs to add.
    """
    costs = box_match_cost(
        logits,
        boxes,
        torch.zeros_like(targets.labels) if classification is None else targets.labels,
        targets.boxes,
        targets.num_targets,
        classification=classification or "softmax",
        w_class=0.0 if classification is None else weights.class_cost,
        w_l1=weights.bbox_cost,
        w_giou=weights.giou_cost,
        alpha=getattr(weights, "alpha", 0.25),
        gamma=getattr(weights, "gamma", 2.0),
    )
    return linear_assignment(costs if extra is None else costs + extra, targets.num_targets)


def packed(targets: Targets) -> PackedTargets:
    """Targets of transformers, whose labels are called `class_labels`, packed."""
    return PackedTargets.from_list([{"labels": x["class_labels"], "boxes": x["boxes"]} for x in targets])


def _mean_targets(count: int, device: torch.device) -> Tensor | float:
    """The mean number of targets over the processes of accelerate, at least 1, as upstream normalises."""
    state = getattr(sys.modules.get("accelerate"), "PartialState", None)
    if state is None or not state._shared_state:
        return float(max(count, 1))
    total = sys.modules["accelerate"].utils.reduce(torch.full((), float(count), device=device))
    return (total / state().num_processes).clamp(min=1)


def criterion_class(loss: Any) -> tuple[str, Any]:
    """The criterion that a loss function of transformers builds, and the name by which it does."""
    for name in loss.__code__.co_names:
        found = loss.__globals__.get(name)
        if isinstance(found, type) and issubclass(found, nn.Module) and not name.endswith("Matcher"):
            return name, found
    raise LookupError(f"{loss.__name__} builds no criterion")


def choose(loss: Any, config: Any) -> FastLoss | str | None:
    """What takes the place of a model's loss, the reason why nothing does, or None if it is no set loss."""
    if not isinstance(loss, FunctionType) or not hasattr(config, "auxiliary_loss"):
        return None  # such as a language model's, or that of a detector which cannot be trained
    try:
        name, criterion = criterion_class(loss)
    except LookupError:
        return None
    known: dict[str, Classification] = {"ImageLoss": "softmax", "DeformableDetrImageLoss": "focal"}
    try:
        if name in known and "pred_masks" not in inspect.signature(loss).parameters:
            whole = WholeLoss(loss, known[name])
            return whole if _same_loss(loss, whole, config) else "its loss is not that of DETR as we know it"
        criterion = _built(loss, name, criterion, config)
        matcher = criterion.matcher
        costs: tuple[Classification | None, ...] = ("softmax", "focal", None)
        for classification in costs:
            if _same_indices(matcher, classification):
                return OneMatch(loss, classification, _known_terms(criterion))
        return f"the costs of its {type(matcher).__name__} are unknown"
    except Exception as error:  # whatever a loss of an unknown version does, it is left alone
        return f"its loss could not be tried: {type(error).__name__}: {error}"


class _Built(Exception):
    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion


def _built(loss: Any, name: str, criterion: Any, config: Any) -> Any:
    """The criterion that a loss builds of a configuration, caught where it is moved to its device."""

    class Caught(criterion):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            raise _Built(self)

    names = loss.__code__.co_varnames[: loss.__code__.co_argcount]
    try:
        with_globals(loss, **{name: Caught})(**{key: config if key == "config" else None for key in names})
    except _Built as built:
        return built.criterion
    raise LookupError(f"{loss.__name__} does not move its criterion")


def _same_loss(loss: Any, fast: WholeLoss, config: Any) -> bool:
    """Whether both give the same on a random input."""
    layers = config.decoder_layers if config.auxiliary_loss else 1
    logits, boxes, targets = _example(layers, config.num_labels + (fast.classification == "softmax"))
    given = (logits[-1], targets, torch.device("cpu"), boxes[-1], config, logits, boxes)
    (total, named, _), (fast_total, fast_named, _) = loss(*given), fast(*given)
    pairs = [(total, fast_total), *((x, fast_named[key]) for key, x in named.items())]
    return named.keys() == fast_named.keys() and all(
        bool((x - y).abs() <= _TOLERANCE * x.abs().clamp(min=1)) for x, y in pairs
    )


def _same_indices(matcher: Any, classification: Classification | None) -> bool:
    """Whether both match a random input alike."""
    logits, boxes, targets = _example(3, 20)
    maps = [torch.eye(20) + torch.eye(20).roll(1, 0)] * len(targets)
    layers = [{"logits": x, "pred_boxes": b, "label_maps": maps} for x, b in zip(logits, boxes, strict=True)]
    if hasattr(matcher, "mask_point_sample_ratio"):
        for layer in layers:
            layer["pred_masks"] = layer["logits"][..., :16].unflatten(-1, (4, 4))
        masks = [(target["boxes"][:, :1, None] > 0.4).expand(-1, 16, 16) for target in targets]
        targets = [{**target, "masks": x} for target, x in zip(targets, masks, strict=True)]
    groups = (2,) if "group_detr" in inspect.signature(matcher.forward).parameters else ()
    with torch.random.fork_rng(devices=[]):  # where masks are compared at random points, at the same ones
        torch.default_generator.manual_seed(0)
        found = match_layers(matcher, layers, targets, *(groups or (1,)), classification=classification)
        torch.default_generator.manual_seed(0)
        expected = [matcher(layer, targets, *groups) for layer in layers]
    return all(
        torch.equal(x, y)
        for layer, indices in zip(layers, expected, strict=True)
        for ours, theirs in zip(found[id(layer["logits"])], indices, strict=True)
        for x, y in zip(ours, theirs, strict=True)
    )


def _known_terms(criterion: Any) -> tuple[str, ...]:
    """The terms of a criterion that we have: on a random input they are equal, and so are the gradients."""
    logits, boxes, targets = _example(1, getattr(criterion, "num_classes", 20))
    layer = {"logits": logits[0].requires_grad_(), "pred_boxes": boxes[0].requires_grad_()}
    indices = [(torch.arange(31, 31 - n, -1), torch.arange(n)) for n in (len(x["boxes"]) for x in targets)]

    def tried(compute: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
        found = compute(layer, targets, indices, 23.0)
        total = torch.stack(list(found.values())).sum()
        if not total.requires_grad:
            return found
        gradients = torch.autograd.grad(total, list(layer.values()), materialize_grads=True)
        return found | dict(zip(layer, gradients, strict=True))

    known = []
    for name in terms.TERMS:
        if name not in criterion.losses:
            continue
        try:
            expected = tried(partial(criterion.get_loss, name))
            found = tried(partial(terms.compute, name, criterion))
        except Exception:  # a term of the same name that needs other things
            continue
        if expected.keys() == found.keys() and all(_close(x, found[key]) for key, x in expected.items()):
            known.append(name)
    return tuple(known)


def _close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x - y).abs().max() <= _TOLERANCE * x.abs().max().clamp(min=1))


def _example(layers: int, classes: int) -> tuple[Tensor, Tensor, Targets]:
    """Random logits [L, 2, 32, K], boxes [L, 2, 32, 4] and targets, the same in each call."""
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1

    labels = (torch.arange(count) % max(1, classes - 1) for count in (9, 14))
    targets = [{"class_labels": x, "boxes": boxes(len(x))} for x in labels]
    return torch.randn(layers, 2, 32, classes, generator=generator) * 3, boxes(layers, 2, 32), targets
