"""Any extents, none excluded: eager, recorded and vmapped calls agree with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from detr_fast.ops import (
    box_loss,
    box_match_cost,
    class_loss,
    linear_assignment,
    mask_match_cost,
    ms_deform_attn,
    ms_deform_attn_fused,
    point_sample,
)
from tests.conftest import SEED
from tests.ops.test_recorded import spoil_memory

Made = tuple[Callable[..., Tensor], list[Tensor], bool]


class Maker:
    """Random calls: a function of tensors, tensors, and whether the first is differentiable."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = torch.Generator().manual_seed(SEED + draw(st.integers(0, 2**20)))

    def extent(self, least: int = 0, most: int = 4) -> int:
        return self.draw(st.integers(least, most))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng)

    def targets(self, queries: int) -> tuple[list[int], Tensor]:
        """Counts of targets and [L, sumT] distinct queries, or -1."""
        counts = [self.extent() for _ in range(self.extent())]
        places = [torch.randperm(queries, generator=self.rng)[:count] for count in counts]
        padded = [
            torch.cat([place, torch.full((count - len(place),), -1)])
            for place, count in zip(places, counts, strict=True)
        ]
        return counts, torch.cat([torch.zeros(0, dtype=torch.int64), *padded])[None].expand(self.layers, -1)

    @property
    def layers(self) -> int:
        if not hasattr(self, "_layers"):
            self._layers = self.extent()
        return self._layers

    def attention(self, fused: bool) -> Made:
        shapes = [(self.extent(1, 5), self.extent(1, 5)) for _ in range(self.extent(1, 3))]
        batch, queries, heads, channels, points = (self.extent() for _ in range(5))
        value = self.normal(batch, sum(h * w for h, w in shapes), heads, channels)
        samples = (batch, queries, heads, len(shapes), points)
        given = self.uniform(*samples, 2), self.normal(*samples)
        if not fused:
            return lambda v, a, b, **kw: ms_deform_attn(v, shapes, a, b, **kw), [value, *given], True
        references = self.uniform(batch, queries, len(shapes), self.draw(st.sampled_from([2, 4])))

        def function(v: Tensor, r: Tensor, a: Tensor, b: Tensor, **kw: Any) -> Tensor:
            return ms_deform_attn_fused(v, shapes, r, a, b, **kw)

        return function, [value, references, *given], True

    def point_sample(self) -> Made:
        maps = self.normal(self.extent(), self.extent(), self.extent(1, 5), self.extent(1, 5))
        return point_sample, [maps, self.uniform(len(maps), self.extent(), 2)], True

    def costs(self, masks: bool) -> Made:
        queries, classes = self.extent(), self.extent(1)
        counts, _ = self.targets(queries)
        labels = torch.randint(classes, (sum(counts),), generator=self.rng)
        rows = (self.layers, len(counts), queries)
        if masks:
            points = self.extent(1, 9)
            values = [self.normal(*rows, points), labels, self.uniform(sum(counts), points)]
        else:
            values = [self.uniform(*rows, 4), labels, self.uniform(sum(counts), 4)]
        cost = mask_match_cost if masks else box_match_cost
        return (
            lambda *tensors, **kw: cost(*tensors, counts, **kw),
            [self.normal(*rows, classes), *values],
            False,
        )

    def class_loss(self) -> Made:
        queries, classes = self.extent(1), self.extent(1)
        counts, query = self.targets(queries)
        labels = torch.randint(classes, (sum(counts),), generator=self.rng)
        logits = self.normal(self.layers, len(counts), queries, classes + 1)
        return lambda x, **kw: class_loss(x, labels, query, counts, **kw), [logits], True

    def box_loss(self) -> Made:
        queries = self.extent(1)
        counts, query = self.targets(queries)
        boxes, wanted = self.uniform(self.layers, len(counts), queries, 4), self.uniform(sum(counts), 4)
        return lambda x, **kw: box_loss(x, wanted, query, counts, **kw), [boxes], True

    def assignment(self) -> Made:
        counts, _ = self.targets(self.extent())
        costs = self.normal(self.layers, sum(counts), self.extent())

        def total(x: Tensor, **kw: Any) -> Tensor:
            """Of each layer; indices may differ between equals."""
            query = linear_assignment(x, counts, **kw)
            padded = torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], -1)  # for -1
            return padded.gather(-1, query[..., None] % padded.shape[-1]).sum((-2, -1))

        return total, [costs], False


MAKERS: dict[str, Callable[[Maker], Made]] = {
    "ms_deform_attn": lambda make: make.attention(fused=False),
    "ms_deform_attn_fused": lambda make: make.attention(fused=True),
    "point_sample": Maker.point_sample,
    "box_match_cost": lambda make: make.costs(masks=False),
    "mask_match_cost": lambda make: make.costs(masks=True),
    "class_loss": Maker.class_loss,
    "box_loss": Maker.box_loss,
    "linear_assignment": Maker.assignment,
}


def agree(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_calls_of_any_extent_agree(name: str, data: st.DataObject) -> None:
    call, tensors, differentiable = data.draw(st.composite(lambda draw: MAKERS[name](Maker(draw)))())
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    expected = call(*wide, backend="reference")
    spoil_memory()
    out = call(*tensors)
    agree(out, expected)

    def plain(*given: Tensor) -> Tensor:
        return call(*given)

    agree(make_fx(plain)(*tensors)(*tensors), out)
    agree(torch.jit.trace(plain, tuple(tensors), check_trace=False)(*tensors), out)
    agree(
        torch.vmap(plain)(*(torch.stack([t, t]) for t in tensors)),
        torch.stack([out, out]),
    )
    if differentiable:
        grad = torch.func.grad(lambda x: call(x, *tensors[1:]).square().sum())(tensors[0])
        leaf = wide[0].requires_grad_()
        (wanted,) = torch.autograd.grad(call(leaf, *wide[1:], backend="reference").square().sum(), leaf)
        agree(grad, wanted)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_compiled_calls_of_any_extent_agree(name: str, data: st.DataObject) -> None:
    call, tensors, _ = data.draw(st.composite(lambda draw: MAKERS[name](Maker(draw)))())
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: call(*given), fullgraph=True, backend="aot_eager")
    spoil_memory()
    agree(compiled(*tensors), call(*tensors))
