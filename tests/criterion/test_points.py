"""The choice of uncertain points."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from detr_fast.criterion import points as module
from detr_fast.criterion.points import uncertain_points
from detr_fast.ops import point_sample
from tests.read_back import NoReadBack


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_keeps_the_least_certain_candidates(rng: torch.Generator) -> None:
    maps, index = torch.randn(4, 1, 9, 11, generator=rng), torch.tensor([2, 0, 2, 3, 1])
    candidates, extra = torch.rand(5, 60, 2, generator=rng), torch.rand(5, 5, 2, generator=rng)
    points = uncertain_points(
        maps, 20, map_index=index, oversample_ratio=3, candidates=candidates, extra=extra
    )
    assert torch.equal(points[:, 15:], extra)
    for row, (chosen, offered) in enumerate(zip(points[:, :15], candidates, strict=True)):
        certainty = point_sample(maps[index[row]][None], offered[None])[0, 0].abs()
        wanted = offered[certainty.argsort()[:15]]
        assert sorted(chosen.tolist()) == sorted(wanted.tolist())


def test_rows_are_treated_some_at_a_time(rng: torch.Generator) -> None:
    maps = torch.randn(7, 1, 8, 8, generator=rng)
    candidates, extra = torch.rand(7, 30, 2, generator=rng), torch.rand(7, 3, 2, generator=rng)

    def call() -> Tensor:
        return uncertain_points(maps, 10, candidates=candidates, extra=extra)

    expected = call()
    for at_once in (1, 60, 100):
        with patch.object(module, "_AT_ONCE", at_once):
            torch.testing.assert_close(call(), expected, rtol=0, atol=0)


def test_draws_from_the_generator(rng: torch.Generator) -> None:
    maps = torch.randn(3, 1, 8, 8, generator=rng).requires_grad_()
    first, again = (uncertain_points(maps, 40, generator=seeded()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, uncertain_points(maps, 40, generator=seeded(1)))
    assert first.shape == (3, 40, 2)
    assert not first.requires_grad
    assert ((first >= 0) & (first < 1)).all()
    torch.manual_seed(5)
    first = uncertain_points(maps, 40)
    torch.manual_seed(5)
    assert torch.equal(first, uncertain_points(maps, 40))


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("importance", [0.0, 0.5, 1.0])
def test_extremes(rows: int, importance: float, rng: torch.Generator) -> None:
    maps = torch.randn(rows, 1, 8, 8, generator=rng)
    for num_points in (0, 1, 9):
        points = uncertain_points(maps, num_points, oversample_ratio=1, importance_ratio=importance)
        assert points.shape == (rows, num_points, 2)
        assert ((points >= 0) & (points < 1)).all()


def test_nothing_is_read_back(rng: torch.Generator) -> None:
    maps, index = torch.randn(3, 1, 8, 8, generator=rng), torch.tensor([2, 0, 2, 1])
    with NoReadBack():
        uncertain_points(maps, 20, map_index=index)


def test_bad_arguments() -> None:
    maps = torch.zeros(3, 1, 8, 8)
    for options in ({"oversample_ratio": 0.5}, {"importance_ratio": 1.5}, {"importance_ratio": -0.1}):
        with pytest.raises(ValueError, match="oversample_ratio, importance_ratio: expected"):
            uncertain_points(maps, 10, **options)
    with pytest.raises(ValueError, match=r"maps: expected \[M, 1, h, w\]"):
        uncertain_points(maps[:, 0], 10)
    with pytest.raises(ValueError, match=r"candidates: expected \[R, 30, 2\] with R = 3"):
        uncertain_points(maps, 10, candidates=torch.zeros(3, 29, 2))
    with pytest.raises(ValueError, match=r"extra: expected \[R, 3, 2\] with R = 3"):
        uncertain_points(maps, 10, extra=torch.zeros(2, 3, 2))
