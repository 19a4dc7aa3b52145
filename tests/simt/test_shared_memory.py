"""Kernels with much shared memory launch at every size around the limits of CUDA and of devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from detr_fast.ops import ms_deform_attn_fused
from detr_fast.ops.linear_assignment.cuda import Cuda
from detr_fast.ops.ms_deform_attn import OPERATOR
from tests.ops.simulated import simulated
from tests.simt.build import simt_module

KB = 1024
# (shared memory of a block, rows): on sm_80 around what CUDA gives unasked, static memory included; then
# around the most whose state fits sm_75
ROWS = [
    *((163 * KB, rows) for rows in (1003, 1004, 1015, 1016, 1024, 1025)),
    *((64 * KB, rows) for rows in (1344, 1345)),
    (48 * KB, 1016),
]


@pytest.fixture
def most_shared() -> Iterator[None]:
    yield
    simt_module().set_most_shared(227 * KB)


@pytest.mark.usefixtures("most_shared")
@pytest.mark.parametrize(("most", "rows"), ROWS)
def test_assignment(most: int, rows: int, rng: torch.Generator) -> None:
    simt_module().set_most_shared(most)
    expected = torch.randperm(rows, generator=rng)
    costs = torch.ones(1, rows, rows)
    costs[0, torch.arange(rows), expected] = 0  # bidding settles it: the test is of the launch
    query, _ = Cuda(simt_module, most).solve(costs, [rows], True)
    assert torch.equal(query[0], expected)


@pytest.mark.parametrize("points", [319, 320, 321, 383, 384, 385])
def test_fused_backward(points: int, rng: torch.Generator) -> None:
    """64 threads in pairs keep 32 floats for each point: 40 KB at 320, 48 KB at 384, then none."""
    value = torch.rand(1, 4, 1, 8, generator=rng)
    offsets = torch.rand(1, 1, 1, 1, points, 2, generator=rng)
    logits = torch.rand(1, 1, 1, 1, points, generator=rng)

    def gradients(backend: str) -> tuple[torch.Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (value, offsets, logits)]
        references = torch.full((1, 1, 1, 2), 0.3)
        out = ms_deform_attn_fused(leaves[0], [(2, 2)], references, *leaves[1:], backend=backend)
        return torch.autograd.grad(out.square().sum(), leaves)

    expected = gradients("reference")
    with simulated(OPERATOR, "host") as pin:
        torch.testing.assert_close(gradients(pin), expected)
