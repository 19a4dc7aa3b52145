"""Arguments in a wrong order, of a wrong type or size are refused before any kernel reads them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from detr_fast.extension import extension
from tests.native.calls import POISON, Call, calls
from tests.simt.build import simt_module

FUNCTIONS = sorted(calls())


@pytest.fixture(params=FUNCTIONS)
def call(request: pytest.FixtureRequest) -> Call:
    return calls()[request.param]


def test_every_function_of_the_operators_is_called() -> None:
    operators = ("loss_", "cost_", "assignment_", "sample_", "attn_")
    for module in (extension(), simt_module()):
        names = {name for name in dir(module) if any(word in name for word in operators)}
        names = {name for name in names if not name.endswith(("_flags", "_workspace", "_cells"))}
        assert names <= set(FUNCTIONS)


def test_good_arguments_run(call: Call) -> None:
    call.run()
    for name in call.outputs:
        assert not (call.arguments[name] == POISON).all(), name


def test_swapped_tensors_are_refused(call: Call) -> None:
    names = list(call.arguments)
    twins = set()
    for one, other in itertools.combinations(call.tensors, 2):
        a, b = call.arguments[one], call.arguments[other]
        if (a.dtype, a.numel()) == (b.dtype, b.numel()):
            twins.add((one, other))
            continue
        swapped = list(call.arguments.values())
        swapped[names.index(one)], swapped[names.index(other)] = b, a
        with pytest.raises(TypeError, match=rf"^{one}|{other}: expected "):
            call.run(swapped)
    for one, other in twins:  # what nothing but the name tells apart
        assert other == f"grad_{one}" or {one, other} == {"map_index", "point_index"}


def test_every_argument_has_its_type(call: Call) -> None:
    good = list(call.arguments.values())
    for i, value in enumerate(good):
        wrong = [None, "text"] if isinstance(value, int | float) else ["text", 7]
        if isinstance(value, torch.Tensor):
            wrong += [value.double() if value.dtype == torch.int64 else value.long(), value.numpy()]
            wrong += [torch.cat([value.flatten(), value.new_zeros(1)]), value.flatten()[1:], np.zeros(3)]
        for other in wrong:
            with pytest.raises(TypeError):
                call.run([*good[:i], other, *good[i + 1 :]])
        with pytest.raises(TypeError):
            call.run([*good[:i], *good[i + 1 :]])
    with pytest.raises(TypeError, match=rf"expected {len(good)} arguments; got {len(good) + 1}"):
        call.run([*good, 0])


def test_negative_counts_are_refused(call: Call) -> None:
    if "sizes" in call.arguments:
        with pytest.raises(ValueError, match="sizes: expected counts >= 0; got -1"):
            call.run([[5, -1, 0], *list(call.arguments.values())[1:]])


def test_tensors_without_memory_are_refused(call: Call) -> None:
    good = list(call.arguments.values())
    for i, (name, value) in enumerate(call.arguments.items()):
        if isinstance(value, torch.Tensor):
            freed = value.clone()
            freed.untyped_storage().resize_(0)
            with pytest.raises(TypeError, match=f"^{name}: expected a tensor with memory"):
                call.run([*good[:i], freed, *good[i + 1 :]])
