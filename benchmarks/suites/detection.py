"""Matching cost, matcher and criterion of detectors beside facebookresearch/detr's; the losses alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.contract import Matching, from_pairs, verify_matching
from benchmarks.peers import official_detr
from benchmarks.peers.gpu_assignment import gpu_solvers
from benchmarks.suite import (
    CUDA,
    FORWARD,
    FORWARD_BACKWARD,
    OURS,
    Call,
    Contender,
    Goal,
    Row,
    Suite,
    Work,
    by_reference,
    criterion,
    drawn_from,
    leaves_of,
    measured,
    pinned,
    ratio,
    size_of,
    targets_of,
)
from detr_fast.criterion import SetCriterion
from detr_fast.matcher import HungarianMatcher
from detr_fast.ops import box_loss, box_match_cost, class_loss
from detr_fast.structures import Matches, PackedTargets, Predictions

OFFICIAL, PLAIN_PYTORCH = "facebookresearch/detr", "plain PyTorch"
BY_LAYER, OUR_COSTS = ", called layer by layer", "our costs, padded, "
WEIGHTS = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
STEP = "L=6 B=16 Q=300"
# Objects in the images of COCO: 7 on average, few in most, up to 60.
COCO_COUNTS = (3, 1, 8, 1, 2, 60, 1, 4, 2, 14, 1, 5, 2, 3, 1, 4)


@dataclass(frozen=True)
class Inputs:
    """Predictions of all decoder layers and the targets of the batch, in our form and in the official one.

    labels [sumT] and boxes [sumT, 4] (cx, cy, w, h) are those of `targets`, packed.
    """

    predictions: Predictions
    targets: list[dict[str, Tensor]]
    labels: Tensor
    boxes: Tensor
    num_targets: tuple[int, ...]

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"logits": self.predictions.logits, "boxes": self.predictions.boxes}

    def layers(self) -> list[Any]:
        """The official outputs of each layer."""
        return official_detr.layers_of(self.predictions.as_dict())

    def by_image(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """[sumT, ...] of each layer, split."""
        return [part for layer in layers for part in layer.split(self.num_targets)]


@dataclass(frozen=True)
class Detection:
    """What a matcher and a criterion see in one training step; every image has a target.

    targets: of each image. kind: clustered, as late in training, or early, nearly identical predictions.
    """

    name: str
    queries: int
    targets: tuple[int, ...]
    layers: int
    classes: int = 92
    kind: str = "clustered"
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD,)

    def inputs(self, generator: Generator) -> Inputs:
        L, B, Q, K = self.layers, len(self.targets), self.queries, self.classes
        draw = drawn_from(generator)
        boxes = random_boxes(generator, sum(self.targets))
        labels = torch.randint(K - 1, (sum(self.targets),), **draw)
        if self.kind == "early":
            predicted = 1e-3 * torch.randn(L, B, Q, 4, **draw)
            predicted += torch.tensor([0.5, 0.5, 0.2, 0.2], device=generator.device)
            logits = 1e-3 * torch.randn(L, B, Q, K, **draw)
        else:  # each query follows a target of its image
            counts = torch.tensor(self.targets, device=generator.device)[:, None]
            pick = (torch.rand(B, Q, **draw) * counts).long() + counts.cumsum(0) - counts
            predicted = boxes[pick] + 0.05 * torch.randn(L, B, Q, 4, **draw)
            followed = labels[pick].expand(L, B, Q)[..., None]
            logits = torch.randn(L, B, Q, K, **draw)
            logits = logits.scatter_add(-1, followed, 2 + torch.randn(L, B, Q, 1, **draw))
        parts = zip(labels.split(self.targets), boxes.split(self.targets), strict=True)
        targets = [{"labels": of_labels, "boxes": of_boxes} for of_labels, of_boxes in parts]
        return Inputs(Predictions(logits, predicted.clamp(1e-3, 1)), targets, labels, boxes, self.targets)


def random_boxes(generator: Generator, count: int) -> Tensor:
    """[count, 4] boxes (cx, cy, w, h) inside the unit square."""
    extent = 0.05 + 0.4 * torch.rand(count, 2, **drawn_from(generator))
    centre = torch.rand(count, 2, **drawn_from(generator))
    return torch.cat([extent / 2 + (1 - extent) * centre, extent], -1)


def _ours_cost(inputs: Inputs, pass_: str) -> Call:
    logits, boxes = inputs.predictions.logits, inputs.predictions.boxes
    return lambda: box_match_cost(logits, boxes, inputs.labels, inputs.boxes, inputs.num_targets)


def _official_cost(inputs: Inputs, pass_: str) -> Call:
    layers = inputs.layers()
    return lambda: [official_detr.block_diagonal_cost(layer, inputs.targets) for layer in layers]


def _diagonal_blocks(result: list[Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """[L, sumT, Q]: of each layer's [B, Q, sumT] the blocks of an image's own targets."""
    counts = torch.tensor(inputs.num_targets, device=inputs.labels.device)
    image = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    target = torch.arange(len(image), device=counts.device)
    return {"costs": torch.stack([costs[image, :, target] for costs in result])}


def _costs(result: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    return {"costs": result}


def _cost_work(inputs: Inputs, pass_: str) -> Work:
    predictions = size_of(inputs.predictions.logits, inputs.predictions.boxes)
    written = 4 * inputs.predictions.logits[:, 0, :, 0].numel() * len(inputs.labels)
    return Work(predictions + size_of(inputs.labels, inputs.boxes) + written)


def _cost_contenders(case: Detection) -> list[Contender]:
    return [
        Contender(OURS, _ours_cost, _costs, ours=True),
        Contender(OFFICIAL, _official_cost, _diagonal_blocks, quick=False),
    ]


def _ours_match(inputs: Inputs, pass_: str) -> Call:
    """Packing included, but on a GPU."""
    matcher, targets = HungarianMatcher(1, 5, 2), targets_of(inputs)
    if isinstance(targets, PackedTargets):
        return lambda: matcher.match(inputs.predictions, targets)
    return lambda: matcher.match(inputs.predictions, PackedTargets.from_list(targets))


def _ours_drop_in(inputs: Inputs, pass_: str) -> Call:
    matcher, layers = HungarianMatcher(1, 5, 2), inputs.layers()
    return lambda: [matcher(layer, inputs.targets) for layer in layers]


def _official_match(inputs: Inputs, pass_: str) -> Call:
    layers = inputs.layers()
    return lambda: [official_detr.match(layer, inputs.targets) for layer in layers]


def _from_matches(result: Matches, inputs: Inputs) -> list[Tensor]:
    return inputs.by_image(list(result.query.cpu()))


def _from_layers(result: list[official_detr.Indices], inputs: Inputs) -> list[Tensor]:
    pairs = ([(target, query) for query, target in layer] for layer in result)
    return [query for layer in pairs for query in from_pairs(layer, inputs.num_targets)]


def _expected_match(inputs: Inputs, pass_: str) -> Matching:
    # float32 costs may choose another pair among near equals
    costs: Tensor = by_reference(Contender(OURS, _ours_cost))(inputs, pass_)
    return Matching(inputs.by_image(list(costs)), 1e-5)


def _match_work(inputs: Inputs, pass_: str) -> Work:
    """Predictions and targets read, and queries written; backward also the gradients."""
    predictions = size_of(inputs.predictions.logits, inputs.predictions.boxes)
    targets = size_of(inputs.labels, inputs.boxes)
    if pass_ == FORWARD:
        return Work(predictions + targets + 8 * len(inputs.predictions.logits) * len(inputs.labels))
    return Work(2 * predictions + targets)


def _match_contenders(case: Detection) -> list[Contender]:
    drop_in = Contender(OURS + BY_LAYER, _ours_drop_in, _from_layers, ours=True)
    return [
        Contender(OURS, _ours_match, _from_matches, ours=True),
        drop_in,
        Contender(OFFICIAL, _official_match, _from_layers, waits=True),
        Contender(OFFICIAL + BY_LAYER, _official_match, _from_layers, beside=drop_in.name, quick=False),
    ]


def padded_match(solve: Callable[[Tensor], Tensor], inputs: Inputs, pass_: str) -> Call:
    """Our costs, padded to the most targets with rows of zeros, which leave the optimum what it is."""
    images, most = len(inputs.num_targets), max(inputs.num_targets)
    counts = enumerate(inputs.num_targets)
    slots = [image * most + i for image, targets in counts for i in range(targets)]
    index, costs_of = torch.tensor(slots, device=inputs.labels.device), _ours_cost(inputs, pass_)

    def call() -> Tensor:
        costs = costs_of()
        padded = costs.new_zeros(len(costs), images * most, costs.shape[-1]).index_copy_(1, index, costs)
        query = solve(padded.view(len(costs) * images, most, -1))
        return query.view(len(costs), -1).index_select(1, index)

    return call


def _gpu_match_contenders(case: Detection, device: torch.device) -> list[Contender]:
    def by_layer(result: Tensor, inputs: Inputs) -> list[Tensor]:
        return inputs.by_image(list(result.long().cpu()))

    ours, _, official, _ = _match_contenders(case)
    solvers = gpu_solvers(OUR_COSTS, padded_match, by_layer, device)
    return [*pinned(ours, MATCHER_PARTS, device), *solvers, official]


def _ours_losses(inputs: Inputs, targets: Any, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    matcher, losses = HungarianMatcher(1, 5, 2), ["labels", "boxes", "cardinality"]
    criterion = SetCriterion(logits.shape[-1] - 1, matcher, WEIGHTS, eos_coef=0.1, losses=losses)
    return criterion(Predictions(logits, boxes), targets)


def _official_losses(inputs: Inputs, targets: Any, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    return official_detr.criterion(Predictions(logits, boxes).as_dict(), targets, logits.shape[-1] - 1)


def _criterion_contenders(case: Detection) -> list[Contender]:
    return [
        criterion(OURS, _ours_losses, WEIGHTS, ours=True),
        criterion(OFFICIAL, _official_losses, WEIGHTS, quick=False, waits=True),
    ]


@dataclass(frozen=True)
class LossInputs:
    """predictions: logits [L, B, Q, K] or boxes [L, B, Q, 4]. targets: labels [sumT] or boxes [sumT, 4].

    query: [L, sumT], random matches.
    """

    predictions: Tensor
    targets: Tensor
    query: Tensor
    num_targets: tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """One loss in the training step of a detection case: "softmax" or "focal" of `class_loss`, "boxes"."""

    step: Detection
    loss: str
    passes: tuple[str, ...] = (FORWARD_BACKWARD,)

    @property
    def name(self) -> str:
        return f"{self.step.name} {self.loss}"

    @property
    def quick(self) -> bool:
        return self.step.quick

    def inputs(self, generator: Generator) -> LossInputs:
        made = self.step.inputs(generator)
        order = torch.rand(made.predictions.logits.shape[:3], **drawn_from(generator)).argsort(-1)
        query = torch.cat([order[:, image, :count] for image, count in enumerate(made.num_targets)], 1)
        boxes = made.predictions.boxes, made.boxes
        predictions, targets = boxes if self.loss == "boxes" else (made.predictions.logits, made.labels)
        return LossInputs(predictions, targets, query, made.num_targets)


def _loss(function: Callable[..., Tensor], inputs: LossInputs, pass_: str) -> Call:
    """The losses of all layers and the gradient of their sum."""
    (leaf,) = leaves_of(inputs.predictions)

    def call() -> dict[str, Tensor]:
        losses = function(leaf, inputs.targets, inputs.query, inputs.num_targets)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return {"losses": losses.detach(), "gradient": gradient}

    return call


def _loss_work(inputs: LossInputs, pass_: str) -> Work:
    return Work(2 * size_of(inputs.predictions) + size_of(inputs.targets, inputs.query))


def _loss_contenders(case: Loss) -> list[Contender]:
    kind: Any = case.loss
    function = box_loss if kind == "boxes" else partial(class_loss, classification=kind)
    ours, by_autograd = (partial(_loss, partial(function, backend=pin)) for pin in (None, "reference"))
    return [Contender(OURS, ours, ours=True), Contender(PLAIN_PYTORCH, by_autograd, quick=False)]


def _goal(case: str, pass_: str, peer: str, threads: int) -> float | None:
    goals = {"B=16 Q=100 L=6": 60.0, "B=16 Q=300 L=6": 120.0, "B=4 Q=900 L=7": 50.0}
    return goals.get(case) if peer == OFFICIAL and threads <= 2 else None


def _gpu_match_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """On an H100."""
    yield Goal(f"matcher {STEP}", "us", "at_most", 500.0, measured(rows, case=STEP, contender=CUDA))


def _gpu_criterion_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """On an H100."""
    ours, official = (measured(rows, "wall_us", case=STEP, contender=name) for name in (CUDA, OFFICIAL))
    yield Goal(f"criterion {STEP}, forward and backward, wall", "us", "at_most", 3000.0, ours)
    times = ratio(official, ours)
    yield Goal(f"criterion {STEP}, {OFFICIAL} / ours, wall", "x", "at_least", 10.0, times)


def _ragged(images: int, around: int) -> tuple[int, ...]:
    """Target counts around a mean: from half of it to one and a half times it, in a fixed mixed order."""
    return tuple(around // 2 + (around * (7 * i % images)) // max(1, images - 1) for i in range(images))


_CASES = tuple(
    Detection(f"B={B} Q={Q} L={L}", Q, _ragged(B, T), L)
    for B, Q, T, L in ((16, 100, 7, 6), (16, 300, 20, 6), (4, 900, 60, 7))
)
_GPU_CASES = tuple(
    Detection(f"{kind}L={L} B=16 Q={Q}", Q, COCO_COUNTS, L, K, quick=Q == 300)
    for kind, L, Q, K in (("", 6, 300, 92), ("", 7, 900, 92), ("Mask2Former ", 10, 100, 81))
)
_TINY = Detection("tiny", 12, (3, 5), layers=2, classes=5)
MATCHER_PARTS = ("box_match_cost", "linear_assignment")
CRITERION_PARTS = (*MATCHER_PARTS, "class_loss", "box_loss")


def _with_gradients(cases: Sequence[Detection]) -> list[Detection]:
    return [replace(case, passes=(FORWARD_BACKWARD,)) for case in cases]


def _loss_suite(operator: str, *losses: str) -> Suite:
    def of(cases: Sequence[Detection]) -> list[Loss]:
        return [Loss(case, loss) for case in cases for loss in losses]

    return Suite(operator, _loss_contenders, _loss_work, of(_CASES), of(_GPU_CASES[:2]), of([_TINY]))


SUITES = [
    Suite(
        "box_match_cost",
        _cost_contenders,
        _cost_work,
        cases=(Detection("smallest", 1, (1,), layers=1, classes=2), *_CASES),
        gpu_cases=_GPU_CASES,
        tiny=[_TINY],
    ),
    Suite(
        "matcher",
        _match_contenders,
        _match_work,
        cases=_CASES,
        gpu_cases=_GPU_CASES,
        tiny=[_TINY],
        gpu_contenders=_gpu_match_contenders,
        expected=_expected_match,
        verify=verify_matching,
        parts=MATCHER_PARTS,
        goal=_goal,
        gpu_goals=_gpu_match_goals,
    ),
    Suite(
        "criterion",
        _criterion_contenders,
        _match_work,
        cases=_with_gradients(_CASES),
        gpu_cases=_with_gradients(_GPU_CASES),
        tiny=_with_gradients([_TINY]),
        expected=by_reference(criterion("", _official_losses, WEIGHTS)),
        parts=CRITERION_PARTS,
        gpu_goals=_gpu_criterion_goals,
    ),
    _loss_suite("class_loss", "softmax", "focal"),
    _loss_suite("box_loss", "boxes"),
]
