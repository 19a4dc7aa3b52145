"""Mask criteria on a GPU, Mask2Former's and DETR's with a mask head: no synchronisation, graphs, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from detr_fast.criterion import MaskSetCriterion, SetCriterion, detection_weights, mask_weights
from detr_fast.criterion.points import uncertain_points
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.ops import OPERATORS, use_backend
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda", 0)
LAYERS, QUERIES, CLASSES, POINTS = 10, 100, 133, 12544
SIZES, SIDE = (14, 0, 6), 512
USED = ("box_match_cost", "mask_match_cost", "linear_assignment", "point_sample", "class_loss", "box_loss")


@dataclass(frozen=True)
class Step:
    """inputs: the leaves that the loss depends on. loss: of these inputs."""

    inputs: Sequence[Tensor]
    loss: Callable[..., Tensor]

    def __call__(self) -> list[Tensor]:
        total = self.loss(*self.inputs)
        return [total.detach(), *torch.autograd.grad(total, self.inputs)]


def packed(rng: torch.Generator) -> PackedTargets:
    """Targets with boxes and a rectangle of each as its mask."""
    targets = []
    pixels = (torch.arange(SIDE) + 0.5) / SIDE
    for size in SIZES:
        boxes = torch.rand(size, 4, generator=rng) * 0.4 + 0.1
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        columns, rows = ((pixels > low[:, i, None]) & (pixels < high[:, i, None]) for i in (0, 1))
        labels = torch.randint(CLASSES, (size,), generator=rng)
        targets.append({"labels": labels, "boxes": boxes, "masks": rows[:, :, None] & columns[:, None]})
    return PackedTargets.from_list(targets, mask_size=(SIDE, SIDE)).to(DEVICE)


def mask2former_step(rng: torch.Generator) -> Step:
    targets = packed(rng)
    criterion = MaskSetCriterion(CLASSES, MaskMatcher(), mask_weights(LAYERS))
    lead = (LAYERS, len(SIZES), QUERIES)
    shapes = ((*lead, CLASSES + 1), (*lead, SIDE // 4, SIDE // 4))
    inputs = [torch.randn(shape, generator=rng).to(DEVICE).requires_grad_() for shape in shapes]
    return Step(
        inputs, lambda logits, masks: criterion.total(criterion(MaskPredictions(logits, masks), targets))
    )


def detr_segm_step(rng: torch.Generator) -> Step:
    targets = packed(rng)
    losses = ("labels", "boxes", "cardinality", "masks")
    weights = detection_weights(6, masks=True)
    criterion = SetCriterion(CLASSES, HungarianMatcher(1, 5, 2), weights, losses=losses)
    lead = (6, len(SIZES), QUERIES)
    shapes = ((*lead, CLASSES + 1), (*lead, 4), (1, *lead[1:], SIDE // 4, SIDE // 4))
    logits, boxes, masks = (torch.randn(shape, generator=rng).to(DEVICE) for shape in shapes)
    inputs = [x.requires_grad_() for x in (logits, boxes.sigmoid(), masks)]
    return Step(
        inputs,
        lambda logits, boxes, masks: criterion.total(
            criterion(Predictions(logits, boxes, masks=masks), targets)
        ),
    )


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Pins what is compiled for CUDA, or Triton for all."""
    with ExitStack() as stack:
        for operator in OPERATORS:
            if operator.name in USED and request.param in operator.backends:
                reason = operator.explain(DEVICE, torch.float32)[request.param]
                if reason is not None:
                    pytest.skip(f"{operator.name}, {request.param}: {reason}")
                stack.enter_context(use_backend(**{operator.name: request.param}))
        yield request.param


both = pytest.mark.parametrize("make", [mask2former_step, detr_segm_step])


@both
def test_step_never_waits_for_the_device(
    backend: str, make: Callable[[torch.Generator], Step], rng: torch.Generator
) -> None:
    step = make(rng)
    step()  # compiles, loads modules, fills the allocator
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@both
def test_step_in_a_graph(backend: str, make: Callable[[torch.Generator], Step], rng: torch.Generator) -> None:
    """With new predictions the graph gives their losses; random points are drawn anew as without it."""
    step = make(rng)
    graph, replayed = captured(step)
    for seed in range(3):
        with torch.no_grad():
            for x in step.inputs:
                x.copy_(x.flip(0))
        torch.cuda.manual_seed(seed)
        graph.replay()
        found = [x.clone() for x in replayed]
        torch.cuda.manual_seed(seed)
        for a, e in zip(found, step(), strict=True):
            assert (a - e).norm() <= 1e-3 * e.norm()


def test_every_replay_draws_its_own_points(rng: torch.Generator) -> None:
    maps = torch.randn(4, 1, 64, 64, generator=rng).to(DEVICE)
    graph, (points,) = captured(lambda: [uncertain_points(maps, 256)])
    torch.cuda.manual_seed(1)
    drawn = []
    for _ in range(2):
        graph.replay()
        drawn.append(points.clone())
    torch.cuda.manual_seed(1)
    graph.replay()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0].sort(1).values, points.sort(1).values)


@both
def test_compiled_step(make: Callable[[torch.Generator], Step], rng: torch.Generator) -> None:
    """A compiled step draws other random points, so its loss is near, not equal."""
    step = make(rng)
    compiled = Step(step.inputs, torch.compile(step.loss, fullgraph=True))
    tolerance = 1e-4 if make is detr_segm_step else 2e-2
    (actual, *gradients), (expected, *_) = compiled(), step()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@both
def test_step_on_another_stream(
    backend: str, make: Callable[[torch.Generator], Step], rng: torch.Generator
) -> None:
    """Inputs arrive late on that stream alone; what was there before would give other losses."""
    step = make(rng)
    torch.cuda.manual_seed(0)
    expected = step()
    late = Step([torch.zeros_like(x).requires_grad_() for x in step.inputs], step.loss)
    late()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(DEVICE)
    torch.cuda.manual_seed(0)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for x, of in zip(late.inputs, step.inputs, strict=True):
                x.copy_(of)
        actual = late()
    stream.synchronize()
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= 1e-3 * e.norm()
