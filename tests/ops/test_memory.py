"""The memory of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from detr_fast.ops import memory


def _fills(make: Callable[[], Tensor]) -> int:
    """How often memory that is not empty is filled."""
    with torch.profiler.profile(record_shapes=True) as profile:
        make()
    fills = [event.input_shapes[0] for event in profile.events() if event.name == "aten::fill_"]
    return sum(0 not in shape for shape in fills)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (4, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_results_are_not_filled_before_a_kernel_fills_them(
    shape: Sequence[int],
    dtype: torch.dtype,
    never_filled: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_never_filled", never_filled)
    like = torch.zeros(2, dtype=dtype)
    torch.use_deterministic_algorithms(True)
    assert _fills(lambda: torch.empty(3)) == 1  # which is what should not happen
    for made in (memory.empty(shape, like), memory.empty(shape, torch.zeros(1), dtype)):
        assert (made.shape, made.dtype, made.device) == (torch.Size(shape), dtype, like.device)
        assert made.is_contiguous()
        assert memory.is_aligned(made)
        made.fill_(1)
        assert made.sum() == made.numel()
    assert _fills(lambda: memory.empty(shape, like)) == 0
