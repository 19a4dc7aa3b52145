"""The set criteria of mask classifiers against a loop over layers and images, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from detr_fast.criterion import (
    MaskFormerCriterion,
    MaskSetCriterion,
    PointDraws,
    SetCriterion,
    detection_weights,
    mask_weights,
)
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.ops import OPERATORS, use_backend
from detr_fast.ops.mask_match_cost import cpu as mask_match_cost_cpu
from detr_fast.ops.point_sample import cpu as point_sample_cpu
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions
from tests.ops import interpreter
from tests.ops.simulated import labels, simulated
from tests.read_back import NoReadBack

K, LAYERS, QUERIES, POINTS = 5, 3, 6, 40
SIZE, STRIDE = (24, 32), 4
Batch = tuple[MaskPredictions, PackedTargets, PointDraws]
Criterion = MaskSetCriterion | MaskFormerCriterion

RAGGED = {
    "ragged": [3, 0, 5],
    "one": [4],
    "no-targets": [0, 0],
    "more-targets-than-queries": [9, 2],
    "as-many": [6, 6],
}


def random_masks(count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Smooth blobs, the first of them empty."""
    blobs = torch.randn(count, 1, 4, 5, generator=rng)
    return (
        F.interpolate(blobs, size=size, mode="bicubic")[:, 0] > (torch.arange(count) == 0)[:, None, None] * 99
    )


def random_batch(sizes: Sequence[int], rng: torch.Generator) -> Batch:
    def normal(*shape: int) -> Tensor:
        return 3 * torch.randn(LAYERS, len(sizes), QUERIES, *shape, generator=rng, dtype=torch.float64)

    masks = normal(*(side // STRIDE for side in SIZE))
    targets = [
        {
            "labels": torch.randint(K, (size,), generator=rng),
            "boxes": torch.zeros(size, 4),
            "masks": random_masks(size, SIZE, rng),
        }
        for size in sizes
    ]
    total = sum(sizes)
    draws = PointDraws(
        torch.rand(LAYERS, len(sizes), POINTS, 2, generator=rng, dtype=torch.float64),
        torch.rand(LAYERS, total, 3 * POINTS, 2, generator=rng, dtype=torch.float64),
        torch.rand(LAYERS, total, POINTS - int(0.75 * POINTS), 2, generator=rng, dtype=torch.float64),
    )
    predictions = MaskPredictions(normal(K + 1).requires_grad_(), masks.requires_grad_())
    return predictions, PackedTargets.from_list(targets), draws


def on_points(**options) -> MaskSetCriterion:
    return MaskSetCriterion(
        K, MaskMatcher(num_points=POINTS), mask_weights(LAYERS), num_points=POINTS, **options
    )


def on_maps(**options) -> MaskFormerCriterion:
    matcher = MaskMatcher(1, 20, 1, num_points=0, mask_cost="focal")
    return MaskFormerCriterion(K, matcher, mask_weights(LAYERS, 1, 20, 1), **options)


def losses_of(criterion: Criterion, batch: Batch, **options) -> dict[str, Tensor]:
    predictions, targets, draws = batch
    if isinstance(criterion, MaskSetCriterion):
        options["draws"] = draws
    return criterion(predictions, targets, **options)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """[N, h, w] at points [P, 2] or [N, P, 2] -> [N, P]."""
    grid = (2 * points.double() - 1).expand(len(maps), -1, -1)[:, :, None]
    return F.grid_sample(maps.double()[:, None], grid, align_corners=False)[:, 0, :, 0]


def focal_ref(x: Tensor, t: Tensor) -> Tensor:
    p = x.sigmoid()
    wrong = p * (1 - t) + (1 - p) * t
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return entropy * wrong**2 * (0.25 * t + 0.75 * (1 - t))


def dice_ref(x: Tensor, t: Tensor) -> Tensor:
    p = x.sigmoid()
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)


def losses_ref(batch: Batch, maps: bool, eos: float) -> dict[str, Tensor]:
    predictions, targets, draws = batch
    assert targets.masks is not None
    losses: dict[str, Tensor] = {}
    num_masks, queries = max(1, sum(targets.num_targets)), predictions.logits.shape[2]
    starts = [sum(targets.num_targets[:b]) for b in range(len(targets))]
    for layer in range(LAYERS):
        name = "" if layer == LAYERS - 1 else f"_{layer}"
        entropy = of_mask = of_dice = torch.zeros((), dtype=torch.float64)
        weight_sum = 0.0
        for b, (start, size) in enumerate(zip(starts, targets.num_targets, strict=True)):
            logits, masks = predictions.logits[layer, b], predictions.masks[layer, b]
            labels, wanted = (x[start : start + size] for x in (targets.labels, targets.masks))
            with torch.no_grad():
                if maps:
                    x, t = masks.flatten(1), wanted[:, ::STRIDE, ::STRIDE].flatten(1).double()
                else:
                    x, t = sample(masks, draws.match[layer, b]), sample(wanted, draws.match[layer, b])
                pairs = [(x, t.expand_as(x)) for t in t]
                pixel = (
                    focal_ref
                    if maps
                    else lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none")
                )
                cost = torch.empty(queries, size, dtype=torch.float64)
                for j, (x, t) in enumerate(pairs):
                    class_cost = -logits.softmax(-1)[:, labels[j]]
                    of_pair = pixel(x, t).mean(-1), dice_ref(x, t)
                    weights = (1, 20, 1) if maps else (2, 5, 5)
                    cost[:, j] = sum(w * c for w, c in zip(weights, (class_cost, *of_pair), strict=True))
                query, target = (torch.from_numpy(i) for i in linear_sum_assignment(cost))
            classes = torch.full((queries,), K)
            classes[query] = labels[target]
            weight = torch.where(classes == K, eos, 1.0).double()
            entropy = entropy + (weight * F.cross_entropy(logits, classes, reduction="none")).sum()
            weight_sum += float(weight.sum())
            found, wanted = masks[query], wanted[target]
            if maps:
                x = F.interpolate(found[:, None], size=SIZE, mode="bilinear").flatten(1)
                t = wanted.flatten(1).double()
                of_mask = of_mask + focal_ref(x, t).mean(1).sum()
            else:
                candidates, extra = (d[layer, start + target] for d in (draws.candidates, draws.extra))
                order = sample(found.detach(), candidates).abs().argsort(1)[:, : int(0.75 * POINTS), None]
                points = torch.cat((candidates.gather(1, order.expand(-1, -1, 2)), extra), dim=1)
                x, t = sample(found, points), sample(wanted, points)
                of_mask = of_mask + F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1).sum()
            of_dice = of_dice + dice_ref(x, t).sum()
        losses[f"loss_ce{name}"] = entropy / weight_sum
        losses[f"loss_mask{name}"] = of_mask / num_masks
        losses[f"loss_dice{name}"] = of_dice / num_masks
    return losses


@pytest.mark.parametrize("sizes", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("make", [on_points, on_maps])
def test_losses_and_gradients(make, sizes: list[int], rng: torch.Generator) -> None:
    batch = random_batch(sizes, rng)
    criterion = make(eos_coef=0.3)
    found, expected = losses_of(criterion, batch), losses_ref(batch, make is on_maps, 0.3)
    assert found.keys() == expected.keys() == criterion.weight_dict.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    total = criterion.total(found)
    expected_total = sum(expected[name] * weight for name, weight in criterion.weight_dict.items())
    inputs = (batch[0].logits, batch[0].masks)
    for mine, reference in zip(
        torch.autograd.grad(total, inputs),
        torch.autograd.grad(expected_total, inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_forms_of_input_agree(make, rng: torch.Generator) -> None:
    predictions, targets, draws = random_batch([2, 0, 4], rng)
    assert targets.masks is not None
    criterion = make()
    expected = losses_of(criterion, (predictions, targets, draws))
    listed = [
        dict(zip(("labels", "boxes", "masks"), parts, strict=True))
        for parts in zip(
            *(x.split(targets.num_targets) for x in (targets.labels, targets.boxes, targets.masks)),
            strict=True,
        )
    ]
    found = losses_of(criterion, (predictions.as_dict(), listed, draws))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    pairs = criterion.matcher.match(predictions, targets, draws.match).as_indices(targets)
    if make is on_maps:
        for (a, b), (c, d) in zip(criterion.matcher(predictions.as_dict(), listed), pairs, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_masks_laid_out_image_by_image(make, rng: torch.Generator) -> None:
    """As a product of embeddings with each image's pixels leaves them."""
    predictions, targets, draws = random_batch([2, 0, 4], rng)
    criterion = make()
    expected = losses_of(criterion, (predictions, targets, draws))
    (expected_grad,) = torch.autograd.grad(criterion.total(expected), predictions.masks)
    masks = predictions.masks.detach().transpose(0, 1).contiguous().requires_grad_()
    found = losses_of(criterion, (MaskPredictions(predictions.logits, masks.transpose(0, 1)), targets, draws))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    (grad,) = torch.autograd.grad(criterion.total(found), masks)
    torch.testing.assert_close(grad.transpose(0, 1), expected_grad)


def test_subset_of_losses(rng: torch.Generator) -> None:
    batch = random_batch([2, 1], rng)
    labels, masks = (set(losses_of(on_points(losses=[name]), batch)) for name in ("labels", "masks"))
    assert labels == {"loss_ce", "loss_ce_0", "loss_ce_1"}
    assert masks == mask_weights(LAYERS).keys() - labels
    with pytest.raises(ValueError, match="losses: expected some of labels, masks; got 'boxes'"):
        on_points(losses=["boxes"])


def test_fresh_points_follow_the_seed(rng: torch.Generator) -> None:
    predictions, targets, _ = random_batch([3, 2], rng)
    criterion = on_points()
    torch.manual_seed(7)
    first, second = criterion(predictions, targets), criterion(predictions, targets)
    torch.manual_seed(7)
    again = criterion(predictions, targets)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["loss_mask"], second["loss_mask"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [on_points, on_maps])
def test_half_precision(make, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Losses in float32, near those of the widened predictions; gradients in the dtype of the predictions."""
    predictions, targets, draws = random_batch([2, 3], rng)
    half = MaskPredictions(
        *(x.detach().to(dtype).requires_grad_() for x in (predictions.logits, predictions.masks))
    )
    wide = MaskPredictions(half.logits.detach().float(), half.masks.detach().float())
    criterion = make()
    found, expected = (losses_of(criterion, (p, targets, draws)) for p in (half, wide))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-2)
    criterion.total(found).backward()
    for x in (half.logits, half.masks):
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_nan_predictions_reach_the_loss(make, rng: torch.Generator) -> None:
    batch = random_batch([3, 2], rng)
    criterion = make()
    with torch.no_grad():
        batch[0].masks[0] = torch.nan
        batch[0].masks[1, 0, 2:4] = torch.nan  # queries that no target needs
    losses = losses_of(criterion, batch)
    assert losses["loss_mask_0"].isnan()
    assert losses["loss_dice_0"].isnan()
    assert all(value.isfinite() for name, value in losses.items() if not name.endswith("_0"))
    assert losses["loss_ce_0"].isfinite()
    with torch.no_grad():
        batch[0].logits[2] = torch.nan
    assert losses_of(criterion, batch)["loss_ce"].isnan()


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_extreme_logits_stay_finite(make, rng: torch.Generator) -> None:
    predictions, targets, draws = random_batch([3, 2], rng)
    masks = torch.where(predictions.masks > 0, 1e4, -1e4).float().detach().requires_grad_()
    criterion = make()
    losses = losses_of(criterion, (MaskPredictions(predictions.logits.float(), masks), targets, draws))
    criterion.total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert masks.grad is not None
    assert masks.grad.isfinite().all()


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_parts_of_a_joined_batch_add_up(make, rng: torch.Generator) -> None:
    sizes = [3, 0, 5, 1]
    predictions, targets, draws = random_batch(sizes, rng)
    assert targets.masks is not None
    criterion = make()
    whole = losses_of(criterion, (predictions, targets, draws))
    parts = []
    for images, rows in ((slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 9))):
        part = (
            MaskPredictions(predictions.logits[:, images], predictions.masks[:, images]),
            PackedTargets(
                targets.labels[rows],
                targets.boxes[rows],
                targets.batch_index[rows] - images.start,
                targets.num_targets[images],
                targets.masks[rows],
            ),
            PointDraws(draws.match[:, images], draws.candidates[:, rows], draws.extra[:, rows]),
        )
        parts.append(losses_of(criterion, part, joined_num_targets=sizes))
    for name in criterion.weight_dict:
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [-1, K])
def test_labels_out_of_range(label: int, rng: torch.Generator) -> None:
    batch = random_batch([3, 2], rng)
    batch[1].labels[0] = label
    with pytest.raises(ValueError, match=rf"targets: expected labels in \[0, {K}\); got {label}"):
        losses_of(on_points(), batch)


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_wrong_input(make, rng: torch.Generator) -> None:
    predictions, targets, draws = random_batch([3, 2], rng)
    assert targets.masks is not None
    criterion = make()

    def call(predictions: MaskPredictions = predictions, targets: PackedTargets = targets) -> None:
        losses_of(criterion, (predictions, targets, draws))

    with pytest.raises(
        ValueError, match=r"targets: expected masks \[sumT, H, W\]; got targets without masks"
    ):
        call(targets=replace(targets, masks=None))
    for size in ((SIZE[0] - STRIDE, SIZE[1]), (SIZE[0], SIZE[1] + 1), (5, 7)):
        with pytest.raises(
            ValueError, match=r"targets: expected masks padded as the images, .*\(6, 8\); got \("
        ):
            call(targets=replace(targets, masks=torch.zeros(5, *size, dtype=torch.bool)))
    with pytest.raises(
        ValueError, match=r"outputs: expected masks \[L, B, Q, h, w\] with .*\[3, 2, 6\]; got"
    ):
        call(MaskPredictions(predictions.logits, predictions.masks[:, :, 1:]))
    with pytest.raises(ValueError, match=rf"logits \[L, B, Q, K \+ 1\] with K = {K}; got \[3, 2, 6, {K}\]"):
        call(MaskPredictions(predictions.logits[..., 1:], predictions.masks))
    with pytest.raises(ValueError, match="targets: expected B = 1 images as outputs; got 2"):
        call(MaskPredictions(predictions.logits[:, :1], predictions.masks[:, :1]))


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_nothing_is_read_back(make, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the operators, whose CPU backends look at indices on the CPU."""
    predictions, targets, _ = random_batch([2, 0, 7], rng)
    criterion = make()
    single = MaskPredictions(
        *(x.detach().float().requires_grad_() for x in (predictions.logits, predictions.masks))
    )
    monkeypatch.setattr(criterion, "_check_classes", lambda logits, targets: None)

    def unwatched(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object) -> Tensor:
            with _disable_current_modes():
                return function(*args)

        return call

    for module, name in (
        (point_sample_cpu, "forward"),
        (point_sample_cpu, "backward"),
        (mask_match_cost_cpu, "forward"),
    ):
        monkeypatch.setattr(module, name, unwatched(getattr(module, name)))
    with NoReadBack():
        criterion.total(criterion(single, targets)).backward()
    assert single.masks.grad is not None


USED = ("mask_match_cost", "linear_assignment", "point_sample", "class_loss")


@pytest.mark.parametrize("simulation", ["host", "triton"])
@pytest.mark.parametrize("make", [on_points, on_maps])
def test_nothing_is_read_back_by_gpu_backends(make, simulation: str, rng: torch.Generator) -> None:
    """From logits to gradients, matching included, with the GPU backends executed without a GPU."""
    wide, targets, draws = random_batch([2, 0, 7], rng)
    criterion = make()
    predictions = MaskPredictions(
        *(x[-1:].detach().float().requires_grad_() for x in (wide.logits, wide.masks))
    )
    draws = PointDraws(*(points[-1:].float() for points in (draws.match, draws.candidates, draws.extra)))
    batch = (predictions, targets, draws)
    expected = criterion.total(losses_of(criterion, batch))
    operators = [operator for operator in OPERATORS if operator.name in USED]
    if any(simulation not in labels(operator) for operator in operators):
        pytest.skip(f"no simulation {simulation} here: {interpreter.why_not()}")
    with ExitStack() as stack:
        for operator in operators:
            name = stack.enter_context(simulated(operator, simulation))
            stack.enter_context(use_backend(**{operator.name: name}))
        losses_of(criterion, batch)  # modules are imported by a first call
        stack.enter_context(NoReadBack())
        with patch.object(criterion, "_check_classes"):  # looks at the labels, on the CPU only
            total = criterion.total(losses_of(criterion, batch))
        total.backward()
    torch.testing.assert_close(total, expected)
    assert predictions.masks.grad is not None


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_compiles_as_one_graph(make, rng: torch.Generator) -> None:
    predictions, targets, draws = random_batch([2, 0, 5], rng)
    criterion = make()

    def step(logits: Tensor, masks: Tensor) -> Tensor:
        return criterion.total(losses_of(criterion, (MaskPredictions(logits, masks), targets, draws)))

    inputs = (predictions.logits, predictions.masks)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*inputs), step(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("make", [on_points, on_maps])
def test_gradients_only_where_needed(make, rng: torch.Generator) -> None:
    predictions, targets, draws = random_batch([2, 3], rng)
    criterion = make()
    for needed in ("logits", "masks", None):
        logits, masks = (
            getattr(predictions, name).detach().requires_grad_(name == needed) for name in ("logits", "masks")
        )
        total = criterion.total(losses_of(criterion, (MaskPredictions(logits, masks), targets, draws)))
        assert total.requires_grad == (needed is not None)
        if needed:
            total.backward()
        assert (logits.grad is not None, masks.grad is not None) == (needed == "logits", needed == "masks")


@pytest.mark.parametrize("sizes", [[3, 0, 5], [0, 0]])
def test_masks_of_a_detector(sizes: list[int], rng: torch.Generator) -> None:
    """The loss "masks" of `SetCriterion`: the last layer's maps, padded as the images."""
    predictions, targets, _ = random_batch(sizes, rng)
    assert targets.masks is not None
    targets = replace(targets, boxes=torch.rand(sum(sizes), 4, generator=rng))
    boxes = torch.rand(LAYERS, len(sizes), QUERIES, 4, generator=rng)
    masks = predictions.masks[-1:].detach().requires_grad_()
    outputs = Predictions(predictions.logits, boxes, masks=masks)
    matcher = HungarianMatcher(1, 5, 2)
    weights = detection_weights(LAYERS, masks=True)
    criterion = SetCriterion(K, matcher, weights, losses=["labels", "boxes", "masks"])
    losses = criterion(outputs, targets)
    assert weights["loss_mask"] == weights["loss_dice"] == 1
    assert losses.keys() == {*weights, "class_error"}
    query = matcher.match(outputs, targets).query[-1]
    x = F.interpolate(masks[0], size=SIZE, mode="bilinear").flatten(2)[targets.batch_index, query]
    t = targets.masks.flatten(1).double()
    expected = {"loss_mask": focal_ref(x, t).mean(1).sum(), "loss_dice": dice_ref(x, t).sum()}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value / max(1, sum(sizes)), rtol=1e-5, atol=1e-6)
    grads = (
        torch.autograd.grad(
            sum(terms[name] for name in expected), masks, allow_unused=True, materialize_grads=True
        )[0]
        for terms in (losses, expected)
    )
    torch.testing.assert_close(next(grads) * max(1, sum(sizes)), next(grads), rtol=1e-5, atol=1e-6)
    for wrong, message in (
        (replace(outputs, masks=None), r"outputs: expected masks \[1, B, Q, h, w\]; got None"),
        (replace(outputs, masks=masks[:, :, 1:]), r"outputs: expected masks \[L, B, Q, h, w\] .*; got \[1, "),
        (replace(outputs, masks=masks[..., 1:]), "targets: expected masks padded as the images"),
    ):
        with pytest.raises(ValueError, match=message):
            criterion(wrong, targets)
    with pytest.raises(ValueError, match="got targets without masks"):
        criterion(outputs, replace(targets, masks=None))
