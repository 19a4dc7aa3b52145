"""Match costs, assignment and the whole criterion on a GPU: no synchronisation, graphs, real sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.ops import use_backend
from detr_fast.ops.box_match_cost import OPERATOR as MATCH_COST
from detr_fast.ops.linear_assignment import OPERATOR as ASSIGNMENT
from detr_fast.structures import PackedTargets, Predictions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda", 0)
LAYERS, IMAGES, QUERIES, CLASSES = 6, 16, 300, 91


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    for operator in (MATCH_COST, ASSIGNMENT):
        reason = operator.explain(DEVICE, torch.float32)[request.param]
        if reason is not None:
            pytest.skip(f"{request.param}: {reason}")
    with use_backend(box_match_cost=request.param, linear_assignment=request.param):
        yield request.param


def batch(rng: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Predictions, PackedTargets]:
    """A training step's predictions and targets: on average 7 a image, up to 60, none in some."""
    sizes = [int(7 * torch.empty(()).exponential_(generator=rng).item()) for _ in range(IMAGES - 2)]
    sizes = [min(size, 60) for size in sizes] + [60, 0]
    targets = PackedTargets.from_list(
        [
            {
                "labels": torch.randint(CLASSES, (size,), generator=rng),
                "boxes": torch.rand(size, 4, generator=rng) * 0.5 + 0.1,
            }
            for size in sizes
        ]
    )
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, generator=rng)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, generator=rng) * 0.5 + 0.2
    predictions = Predictions(
        logits.to(DEVICE, dtype).requires_grad_(), boxes.to(DEVICE, dtype).requires_grad_()
    )
    return predictions, targets.to(DEVICE)


def criterion() -> SetCriterion:
    return SetCriterion(CLASSES, HungarianMatcher(1, 5, 2), detection_weights(LAYERS))


def step(loss: SetCriterion, predictions: Predictions, targets: PackedTargets) -> list[Tensor]:
    total = loss.total(loss(predictions, targets))
    return [total.detach(), *torch.autograd.grad(total, [predictions.logits, predictions.boxes])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_equals_the_cpu(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    predictions, targets = batch(rng, dtype)
    actual = step(criterion(), predictions, targets)
    on_cpu = Predictions(
        *(x.detach().cpu().requires_grad_() for x in (predictions.logits, predictions.boxes))
    )
    with use_backend("cpu"):
        expected = step(criterion(), on_cpu, targets.to("cpu"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for a, e in zip(actual, expected, strict=True):
        assert (a.cpu() - e).abs().max() <= tolerance * e.abs().max()


def test_step_never_waits_for_the_device(backend: str, rng: torch.Generator) -> None:
    predictions, targets = batch(rng)
    loss = criterion()
    step(loss, predictions, targets)  # compiles, loads modules, fills the allocator
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, predictions, targets)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_step_in_a_graph(backend: str, rng: torch.Generator) -> None:
    predictions, targets = batch(rng)
    loss = criterion()
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(loss, predictions, targets)
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step(loss, predictions, targets)
    for _ in range(3):
        with torch.no_grad():
            predictions.logits.copy_(torch.randn(predictions.logits.shape, generator=rng))
            predictions.boxes.copy_(torch.rand(predictions.boxes.shape, generator=rng) * 0.5 + 0.2)
        graph.replay()
        for a, e in zip(replayed, step(loss, predictions, targets), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-7)


def test_compiled_step(backend: str, rng: torch.Generator) -> None:
    predictions, targets = batch(rng)
    loss = criterion()
    expected = step(loss, predictions, targets)

    def total(logits: Tensor, boxes: Tensor) -> Tensor:
        return loss.total(loss(Predictions(logits, boxes), targets))

    inputs = (predictions.logits, predictions.boxes)
    compiled = torch.compile(total, fullgraph=True)(*inputs)
    for a, e in zip([compiled.detach(), *torch.autograd.grad(compiled, inputs)], expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_matching_on_another_stream(backend: str, rng: torch.Generator) -> None:
    predictions, targets = batch(rng)
    matcher = HungarianMatcher(1, 5, 2)
    expected = matcher.match(predictions, targets).query
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = Predictions(predictions.logits.detach() + 0, predictions.boxes.detach() + 0)
        actual = matcher.match(late, targets).query
    stream.synchronize()
    assert torch.equal(actual, expected)
