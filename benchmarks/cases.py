"""The benchmark cases: real sizes, and inputs that look like a model's.

Letters: `B` images, `L` decoder layers, `Q` queries, `T` targets of one image, `sumT` targets of the
batch, `K` classes, `H` heads, `D` head channels, `S` value positions, `N` levels, `P` points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from detr_fast.criterion import PointDraws
from detr_fast.ops import box_match_cost
from detr_fast.structures import MaskPredictions, Predictions

FORWARD = "forward"
FORWARD_BACKWARD = "forward+backward"


class Case(Protocol):
    """One set of sizes of one operator, and the passes that are timed."""

    @property
    def operator(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def passes(self) -> Sequence[str]: ...
    def inputs(self, generator: Generator) -> Any:
        """Inputs of one call, drawn from `generator`."""


@dataclass(frozen=True)
class AttentionInputs:
    """One call of multi-scale deformable attention, in the plain and in the fused form.

    value [B, S, H, D], locations [B, Q, H, N, P, 2] and weights [B, Q, H, N, P] are the plain form's;
    reference_points [B, Q, N, 2], offsets [B, Q, H, N, P, 2] in pixels and logits [B, Q, H, N, P] give
    the same locations and weights in the fused form. grad_output: [B, Q, H*D].
    checked: the queries whose result is compared with the reference (None: all).
    """

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    locations: Tensor
    weights: Tensor
    reference_points: Tensor
    offsets: Tensor
    logits: Tensor
    grad_output: Tensor
    checked: Tensor | None = None

    def sampled(self, queries: int, generator: Generator) -> AttentionInputs:
        """The same call with a gradient for `queries` random queries only: a cheap check of a large case."""
        total = self.locations.shape[1]
        if total <= queries:
            return self
        checked = torch.randperm(total, generator=generator, device=generator.device)[:queries]
        grad_output = torch.zeros_like(self.grad_output)
        grad_output[:, checked] = self.grad_output[:, checked]
        return replace(self, grad_output=grad_output, checked=checked)


@dataclass(frozen=True)
class AttentionCase:
    """Sampling points lie about three pixels around reference points.

    The reference points are the pixel centres of all levels where Q = S (an encoder), else random.
    """

    name: str
    images: int
    queries: int | None
    shapes: tuple[tuple[int, int], ...]
    heads: int
    channels: int
    points: int

    operator: ClassVar[str] = "ms_deform_attn"
    passes: ClassVar[tuple[str, ...]] = (FORWARD, FORWARD_BACKWARD)

    def inputs(self, generator: Generator) -> AttentionInputs:
        """Inputs of one call, drawn from `generator`, on its device."""
        B, H, N, P = self.images, self.heads, len(self.shapes), self.points
        S = sum(h * w for h, w in self.shapes)
        device = generator.device
        if self.queries is None:
            points = torch.cat([_pixel_centres(h, w) for h, w in self.shapes]).to(device).expand(B, S, 2)
        else:
            points = torch.rand(B, self.queries, 2, generator=generator, device=device)
        Q = points.shape[1]
        reference_points = points[:, :, None].expand(B, Q, N, 2).contiguous()
        extent = torch.tensor([(w, h) for h, w in self.shapes], dtype=torch.float32, device=device)[:, None]
        offsets = 3 * torch.randn(B, Q, H, N, P, 2, generator=generator, device=device)
        anchors = reference_points[:, :, None, :, None]
        offsets += _away_from_knots((anchors.double() + offsets.double() / extent) * extent).float()
        logits = torch.randn(B, Q, H, N, P, generator=generator, device=device)
        return AttentionInputs(
            value=torch.randn(B, S, H, self.channels, generator=generator, device=device),
            shapes=self.shapes,
            locations=anchors + offsets / extent,
            weights=logits.flatten(3).softmax(-1).view_as(logits),
            reference_points=reference_points,
            offsets=offsets,
            logits=logits,
            grad_output=torch.randn(B, Q, H * self.channels, generator=generator, device=device),
        )


@dataclass(frozen=True)
class AssignmentInputs:
    """The same costs in both layouts: query_major [B, Q, T] as models make them, target_major [B*T, Q]."""

    query_major: Tensor
    target_major: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class AssignmentCase:
    """A batch of equally sized problems.

    random: independent uniform costs. clustered: DETR's costs of predictions jittered around the
    targets, as late in training. early: DETR's costs of nearly identical predictions, as at its start.
    """

    queries: int
    targets: int
    kind: str
    images: int = 16

    operator: ClassVar[str] = "linear_assignment"
    passes: ClassVar[tuple[str, ...]] = (FORWARD,)

    @property
    def name(self) -> str:
        return f"{self.queries}x{self.targets} {self.kind}"

    def inputs(self, generator: Generator) -> AssignmentInputs:
        B, Q, T = self.images, self.queries, self.targets
        if self.kind == "random":
            costs = torch.rand(B, T, Q, generator=generator)
        else:
            detection = DetectionCase(self.name, B, Q, (T,) * B, layers=1).inputs(generator, self.kind)
            stacked = detection.predictions
            costs = box_match_cost(
                stacked.logits[0],
                stacked.boxes[0],
                detection.labels,
                detection.boxes,
                detection.sizes,
            ).view(B, T, Q)
        return AssignmentInputs(costs.mT.contiguous(), costs.reshape(B * T, Q).contiguous(), (T,) * B)


@dataclass(frozen=True)
class DetectionInputs:
    """Predictions of all decoder layers and the targets of the batch, in our form and in the official one.

    labels [sumT] and boxes [sumT, 4] (cx, cy, w, h) are those of `targets`, packed.
    """

    predictions: Predictions
    targets: list[dict[str, Tensor]]
    labels: Tensor
    boxes: Tensor
    sizes: tuple[int, ...]

    @property
    def outputs(self) -> dict[str, Any]:
        return self.predictions.as_dict()


@dataclass(frozen=True)
class DetectionCase:
    """What a matcher and a criterion see in one training step; every image has a target."""

    name: str
    images: int
    queries: int
    targets: tuple[int, ...]
    layers: int
    classes: int = 92
    operator: str = "matcher"
    passes: tuple[str, ...] = (FORWARD,)

    def inputs(self, generator: Generator, kind: str = "clustered") -> DetectionInputs:
        L, B, Q, K = self.layers, self.images, self.queries, self.classes
        boxes = _random_boxes(generator, sum(self.targets))
        labels = torch.randint(K - 1, (sum(self.targets),), generator=generator)
        if kind == "early":
            predicted = torch.tensor([0.5, 0.5, 0.2, 0.2]) + 1e-3 * torch.randn(
                L, B, Q, 4, generator=generator
            )
            logits = 1e-3 * torch.randn(L, B, Q, K, generator=generator)
        else:
            predicted, logits = _around_targets(generator, (L, B, Q, K), boxes, labels, self.targets)
        return DetectionInputs(
            Predictions(logits, predicted.clamp(1e-3, 1)),
            [
                {"labels": of_labels, "boxes": of_boxes}
                for of_labels, of_boxes in zip(
                    labels.split(self.targets), boxes.split(self.targets), strict=True
                )
            ],
            labels,
            boxes,
            self.targets,
        )


@dataclass(frozen=True)
class MaskInputs:
    """Predictions of all layers of a mask classifier and the targets of the batch, in the official form.

    draws: the random points, so that results can be compared; None: fresh ones in each call.
    """

    predictions: MaskPredictions
    targets: list[dict[str, Tensor]]
    draws: PointDraws | None = None

    def drawn(self, generator: Generator) -> MaskInputs:
        """The same call with random points that stay: Mask2Former's numbers of them."""
        layers, images = self.predictions.logits.shape[:2]
        masks = sum(len(target["labels"]) for target in self.targets)
        shapes = ((images, 12544), (masks, 3 * 12544), (masks, 3136))
        draws = (torch.rand(layers, *shape, 2, generator=generator) for shape in shapes)
        return replace(self, draws=PointDraws(*draws))


@dataclass(frozen=True)
class MaskCase:
    """What Mask2Former's criterion sees in one training step.

    targets: of each image. size: side of the padded images; masks are predicted at a quarter of it.
    """

    name: str
    targets: tuple[int, ...]
    queries: int = 100
    layers: int = 10
    classes: int = 133
    size: int = 1024
    operator: str = "mask_criterion"
    passes: tuple[str, ...] = (FORWARD_BACKWARD,)

    def inputs(self, generator: Generator) -> MaskInputs:
        shape = (self.layers, len(self.targets), self.queries)
        logits = torch.randn(*shape, self.classes + 1, generator=generator)
        masks = 4 * torch.randn(*shape, self.size // 4, self.size // 4, generator=generator)
        targets = []
        for count in self.targets:
            blobs = torch.randn(1, count, 8, 8, generator=generator)
            targets.append(
                {
                    "labels": torch.randint(self.classes, (count,), generator=generator),
                    "boxes": _random_boxes(generator, count),
                    "masks": F.interpolate((blobs > 0).byte(), size=(self.size, self.size))[0].bool(),
                }
            )
        return MaskInputs(MaskPredictions(logits, masks), targets)


@dataclass(frozen=True)
class PointSampleInputs:
    """One call of point_sample: maps [M, C, h, w], points [R, P, 2] and, where rows choose, map_index [R].

    grad_output: [R, C, P].
    """

    maps: Tensor
    points: Tensor
    map_index: Tensor | None
    grad_output: Tensor


@dataclass(frozen=True)
class PointSampleCase:
    """Mask2Former's uses: 12544 uniform points a row, as its matcher and its losses draw them.

    rows: of so many random maps (None: every map is a row). masks: bool maps, discs of all sizes.
    """

    name: str
    maps: tuple[int, int, int, int]
    rows: int | None = None
    masks: bool = False
    points: int = 12544
    passes: tuple[str, ...] = (FORWARD,)

    operator: ClassVar[str] = "point_sample"

    def inputs(self, generator: Generator) -> PointSampleInputs:
        M, C, h, w = self.maps
        if self.masks:
            y, x = _pixel_centres(h, w).view(h, w, 2).unbind(-1)[::-1]
            centre = torch.rand(M, C, 2, 1, 1, generator=generator)
            radius = 0.4 * torch.rand(M, C, 1, 1, generator=generator)
            maps = (x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2 < radius**2
        else:
            maps = torch.randn(self.maps, generator=generator)
        index = None if self.rows is None else torch.randperm(M, generator=generator)[: self.rows]
        R = M if self.rows is None else self.rows
        points = torch.rand(R, self.points, 2, generator=generator)
        return PointSampleInputs(maps, points, index, torch.randn(R, C, self.points, generator=generator))


@dataclass(frozen=True)
class MaskCostInputs:
    """The arguments of `mask_match_cost`; options holds its keywords."""

    logits: Tensor
    mask_values: Tensor
    labels: Tensor
    target_values: Tensor
    sizes: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class MaskCostCase:
    """What the matcher of a mask classifier compares: Mask2Former's at points, each layer's own, with targets
    sampled in 0..1; MaskFormer's ("focal") at the pixels of its maps."""

    name: str
    targets: tuple[int, ...]
    points: int
    mask_cost: str = "bce"
    queries: int = 100
    layers: int = 10
    classes: int = 133
    operator: str = "mask_match_cost"
    passes: tuple[str, ...] = (FORWARD,)

    def inputs(self, generator: Generator) -> MaskCostInputs:
        lead, total = (self.layers, len(self.targets), self.queries), sum(self.targets)
        if self.mask_cost == "bce":
            values = 2 * torch.rand(self.layers, total, self.points, generator=generator) - 0.5
            values = values.clamp(0, 1)
        else:
            values = torch.rand(total, self.points, generator=generator) < 0.3
        weights = {"bce": (2.0, 5.0, 5.0), "focal": (1.0, 20.0, 1.0)}[self.mask_cost]
        return MaskCostInputs(
            torch.randn(*lead, self.classes + 1, generator=generator),
            4 * torch.randn(*lead, self.points, generator=generator),
            torch.randint(self.classes, (total,), generator=generator),
            values,
            self.targets,
            {
                "mask_cost": self.mask_cost,
                **dict(zip(("w_class", "w_mask", "w_dice"), weights, strict=True)),
            },
        )


def _around_targets(
    generator: Generator,
    shape: tuple[int, int, int, int],
    boxes: Tensor,
    labels: Tensor,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Predicted boxes [L, B, Q, 4] and logits [L, B, Q, K] of queries that each follow a random target."""
    L, B, Q, K = shape
    first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    pick = (torch.rand(B, Q, generator=generator) * torch.tensor(sizes)[:, None]).long() + first[:, None]
    predicted = boxes[pick] + 0.05 * torch.randn(L, B, Q, 4, generator=generator)
    logits = torch.randn(L, B, Q, K, generator=generator)
    followed = labels[pick].expand(L, B, Q)[..., None]
    return predicted, logits.scatter_add(-1, followed, 2 + torch.randn(L, B, Q, 1, generator=generator))


def _random_boxes(generator: Generator, count: int) -> Tensor:
    """[count, 4] boxes (cx, cy, w, h) inside the unit square."""
    extent = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
    centre = extent / 2 + (1 - extent) * torch.rand(count, 2, generator=generator)
    return torch.cat([centre, extent], -1)


def _pixel_centres(height: int, width: int) -> Tensor:
    """[height * width, 2] centres (x, y) of a level's pixels, in 0..1."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], -1).flatten(0, 1)


def _away_from_knots(pixels: Tensor) -> Tensor:
    """What to add so that no sample lies within 0.01 pixels of a pixel centre.

    There the gradient of a location jumps, and float32 rounding chooses the side.
    """
    fraction = (pixels - 0.5) - (pixels - 0.5).floor()
    return fraction.clamp(0.01, 0.99) - fraction


def _ragged(images: int, around: int) -> tuple[int, ...]:
    """Target counts around a mean: from half of it to one and a half times it, in a fixed mixed order."""
    spread = [around // 2 + (around * (7 * i % images)) // max(1, images - 1) for i in range(images)]
    return tuple(spread)


def _detection_cases(operator: str, passes: tuple[str, ...]) -> tuple[DetectionCase, ...]:
    sizes = ((16, 100, 7, 6), (16, 300, 20, 6), (4, 900, 60, 7))
    return tuple(
        DetectionCase(f"B={B} Q={Q} L={L}", B, Q, _ragged(B, T), L, operator=operator, passes=passes)
        for B, Q, T, L in sizes
    )


_COCO_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))

ATTENTION = (
    AttentionCase("smallest", 1, 1, ((1, 1),), heads=1, channels=4, points=1),
    AttentionCase("RF-DETR", 1, 300, ((40, 40),), heads=16, channels=16, points=2),
    AttentionCase("decoder", 2, 300, _COCO_LEVELS, heads=8, channels=32, points=4),
    AttentionCase("encoder", 1, None, _COCO_LEVELS, heads=8, channels=32, points=4),
    AttentionCase("Mask2Former", 1, None, ((32, 32), (64, 64), (128, 128)), heads=8, channels=32, points=4),
)
ASSIGNMENT = (
    AssignmentCase(1, 1, "random", images=1),
    *(
        AssignmentCase(queries, targets, kind)
        for queries, targets in ((100, 7), (100, 20), (300, 30), (300, 100), (900, 50), (900, 300))
        for kind in ("random", "clustered", "early")
    ),
)
MATCH_COST = (
    DetectionCase("smallest", 1, 1, (1,), layers=1, classes=2, operator="box_match_cost"),
    *_detection_cases("box_match_cost", (FORWARD,)),
)
MASK_MATCH_COST = (
    MaskCostCase("smallest", (1,), 1, queries=1, layers=1, classes=1),
    MaskCostCase("Mask2Former B=4 T~14", (7, 12, 16, 20), 12544),
    MaskCostCase("Mask2Former B=1 T=100", (100,), 12544),
    MaskCostCase("MaskFormer B=4 T~14", (7, 12, 16, 20), 6400, "focal", layers=6),
)
POINT_SAMPLE = (
    PointSampleCase("smallest", (1, 1, 2, 2), points=1),
    PointSampleCase("matcher", (4, 100, 256, 256)),
    PointSampleCase("loss", (400, 1, 256, 256), rows=100, passes=(FORWARD, FORWARD_BACKWARD)),
    PointSampleCase("target masks", (100, 1, 1024, 1024), masks=True),
)
MATCHER = _detection_cases("matcher", (FORWARD,))
CRITERION = _detection_cases("criterion", (FORWARD_BACKWARD,))

# a step of two images with few targets, and the most of one image, whose memory is measured
MASK_CRITERION = (MaskCase("B=2 T=20 1024x1024", (14, 6)),)
MOST_MASKS = MaskCase("B=1 T=100 1024x1024", (100,))

CASES: tuple[Case, ...] = (
    *MATCHER,
    *ASSIGNMENT,
    *MATCH_COST,
    *MASK_MATCH_COST,
    *CRITERION,
    *MASK_CRITERION,
    *POINT_SAMPLE,
    *ATTENTION,
)
