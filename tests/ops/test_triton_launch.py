"""What surrounds a launch of a Triton kernel."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

from detr_fast.ops import box_loss, box_match_cost, class_loss, linear_assignment, triton_launch
from detr_fast.ops.box_loss import OPERATOR as BOX_LOSS
from detr_fast.ops.box_match_cost import OPERATOR as BOX_MATCH_COST
from detr_fast.ops.class_loss import OPERATOR as CLASS_LOSS
from detr_fast.ops.linear_assignment import OPERATOR as LINEAR_ASSIGNMENT
from detr_fast.ops.triton_launch import launch, target_starts
from tests.ops import interpreter
from tests.ops.simulated import simulated

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreter.why_not() is not None, reason=str(interpreter.why_not()))


@pytest.fixture(autouse=True)
def _no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_tables", {})


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of table kernels launched."""
    names: list[str] = []

    def counted(kernel: Any, *arguments: Any) -> None:
        names.append(kernel.__name__)
        launch(kernel, *arguments)

    monkeypatch.setattr(triton_launch, "launch", counted)
    return names


@pytest.mark.parametrize(("images", "launches"), [(0, 1), (1, 1), (16, 1), (31, 1), (32, 2), (70, 3)])
def test_starts_of_targets(images: int, launches: int, launched: list[str], rng: torch.Generator) -> None:
    num_targets = torch.randint(0, 2**40, (images,), generator=rng).tolist()
    assert target_starts(num_targets, CPU).tolist() == [0, *accumulate(num_targets)]
    assert launched == ["table_kernel"] * launches


def test_a_step_makes_its_table_once(launched: list[str], rng: torch.Generator) -> None:
    num_targets = [2, 0, 3] * 6
    logits = torch.randn(1, 18, 4, 5, generator=rng, requires_grad=True)
    boxes = torch.rand(1, 18, 4, 4, generator=rng, requires_grad=True)
    labels, target_boxes = torch.zeros(30, dtype=torch.int64), torch.rand(30, 4, generator=rng)
    with (
        simulated(BOX_MATCH_COST, "triton") as pin,
        simulated(LINEAR_ASSIGNMENT, "triton"),
        simulated(CLASS_LOSS, "triton"),
        simulated(BOX_LOSS, "triton"),
    ):
        costs = box_match_cost(logits, boxes, labels, target_boxes, num_targets, backend=pin)
        query = linear_assignment(costs, num_targets, backend=pin)
        loss = class_loss(logits, labels, query, num_targets, backend=pin).sum()
        (loss + box_loss(boxes, target_boxes, query, num_targets, backend=pin).sum()).backward()
    assert launched == ["table_kernel"]


def test_tables_are_few() -> None:
    for n in range(3 * triton_launch._MOST_TABLES):
        assert target_starts([n], CPU).tolist() == [0, n]
    assert len(triton_launch._tables) <= triton_launch._MOST_TABLES


def test_no_table_passes_into_a_graph_or_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = target_starts([1, 2], CPU)
    assert target_starts([1, 2], CPU) is outside
    with monkeypatch.context() as capturing:
        capturing.setattr(triton_launch, "_is_capturing", lambda device: True)
        inside = target_starts([1, 2], CPU)
        assert inside is not outside
        target_starts([3], CPU)
    assert target_starts([1, 2], CPU) is outside
    assert [values for values, *_ in triton_launch._tables] == [(0, 1, 3)]


class _Unloaded:
    __name__ = "some_kernel"

    def __getitem__(self, grid: tuple[int]) -> Any:
        raise RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing")


def test_a_first_launch_within_a_capture_tells_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (torch.empty(1),)
    with pytest.raises(RuntimeError, match=r"^Triton Error"):
        launch(_Unloaded(), 1, 1, arguments)
    monkeypatch.setattr(triton_launch, "_is_capturing", lambda device: True)
    with pytest.raises(
        RuntimeError,
        match=r"could not launch some_kernel while .* call detr_fast.ops.warm_up .* the same call",
    ) as raised:
        launch(_Unloaded(), 1, 1, arguments)
    assert "operation not permitted" in str(raised.value.__cause__)
