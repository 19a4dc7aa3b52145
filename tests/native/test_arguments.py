"""Arguments in a wrong order, of a wrong type or size are refused before any kernel reads them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detr_fast.extension import NotReady, extension
from detr_fast.ops.memory import run
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
        names = {name for name in names if not name.endswith(("_flags", "_workspace", "_cells", "_sums"))}
        assert names - {"linear_sum_assignment_cpu"} <= set(FUNCTIONS)  # that one takes an array


@pytest.fixture(params=["exchange", "attributes"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How tensors are read: through DLPack's C exchange API, or as with torch before 2.10, which has none."""
    if request.param == "exchange":
        yield
        return
    tensor = SimpleNamespace(
        **{
            name: getattr(torch.Tensor, name)
            for name in ("numel", "data_ptr", "stride", "is_contiguous", "is_neg")
        }
    )
    names = ("float32", "bfloat16", "float16", "uint8", "float64", "int32", "int64", "bool")
    older = SimpleNamespace(Tensor=tensor, **{name: getattr(torch, name) for name in names})
    modules = (extension(), simt_module())
    for module in modules:
        module.use_tensors_of(older, NotReady)
    yield
    for module in modules:
        module.use_tensors_of(torch, NotReady)


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
def test_tensors_without_memory_are_refused(call: Call) -> None:
    good = list(call.arguments.values())
    for i, (name, value) in enumerate(call.arguments.items()):
        if isinstance(value, torch.Tensor):
            freed = value.clone()
            freed.untyped_storage().resize_(0)
            with pytest.raises(TypeError, match=f"^{name}: expected a tensor with memory"):
                call.run([*good[:i], freed, *good[i + 1 :]])


def _expanded(value: torch.Tensor) -> torch.Tensor:
    return value.flatten()[:1].expand(value.numel()).view(value.shape)


def _every_other(value: torch.Tensor) -> torch.Tensor:
    return torch.stack([value, value], -1)[..., 0]


def _unaligned(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("spoil", [_expanded, _every_other, _unaligned, torch._neg_view])
def test_memory_that_kernels_cannot_read_is_copied_first(
    call: Call, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    good = list(call.arguments.values())
    for i, (name, value) in enumerate(call.arguments.items()):
        if not isinstance(value, torch.Tensor) or name in ("costs", "maps"):  # these are read by strides
            continue
        if spoil is torch._neg_view and not value.is_floating_point():
            continue
        spoilt = spoil(value)
        with pytest.raises(NotReady, match=f"^{name}: expected "):
            call.run([*good[:i], spoilt, *good[i + 1 :]])
    fresh = calls()[call.function]  # where outputs still hold what they began with
    spoilt = [
        spoil(value)
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and name not in ("costs", "maps", *call.outputs)
        and not name.startswith(("grad_value", "grad_boxes", "grad_maps", "reference_parts", "loss"))
        else value
        for name, value in fresh.arguments.items()
    ]
    run(getattr(call.module(), call.function), *spoilt)
    for name in call.outputs:
        assert not (fresh.arguments[name] == POISON).all(), name
