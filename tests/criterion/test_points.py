"""The choice of uncertain points."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from detr_fast.criterion import points as module
from detr_fast.criterion.points import uncertain_points
from detr_fast.ops import point_sample, use_backend
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("kind", ["usual", "ties", "equal", "bad", "one_in_bits"])
def test_native_choice_is_that_of_topk(isa: str, kind: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    maps = 4 * torch.randn(5, 1, 12, 40, generator=rng)
    if kind == "ties":
        maps = maps.round()
    elif kind == "equal":
        maps = torch.full_like(maps, -1.5)
    elif kind == "bad":
        maps[rng_mask(maps, rng)] = torch.nan
        maps[rng_mask(maps, rng)] = -torch.inf
    elif kind == "one_in_bits":  # beside each other in the last digits only
        maps = 1 + 1e-6 * maps
    maps = maps.abs().to(dtype) if dtype == torch.uint8 else maps.to(dtype)
    index = torch.tensor([4, 0, 4, 2])
    candidates = torch.rand(4, 900, 2, generator=rng)
    if kind == "ties":
        # at pixels' centres
        candidates = (candidates * torch.tensor([40, 12]) + 0.5).floor() / torch.tensor([40.0, 12.0])
    extra = torch.rand(4, 75, 2, generator=rng)
    found = uncertain_points(maps, 300, map_index=index, candidates=candidates, extra=extra)
    assert torch.equal(found[:, 225:], extra)
    values = point_sample(maps.float(), candidates, map_index=index)[:, 0].abs()
    values = torch.where(values.isnan(), -1.0, values)
    for row in range(4):
        wanted = values[row].sort(stable=True).indices[:225].sort().values
        assert torch.equal(found[row, :225], candidates[row, wanted])


def rng_mask(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=rng) < 0.1


@pytest.mark.parametrize("threads", [1, 2])
def test_native_points_are_uniform(isa: str, threads: int, rng: torch.Generator) -> None:
    torch.set_num_threads(threads)
    maps = torch.zeros(40, 1, 16, 16)  # all equal: the first candidates
    points = uncertain_points(maps, 4000, oversample_ratio=1, importance_ratio=0.5, generator=rng)
    extra = points[:, 2000:]
    maps[:] = torch.linspace(1, 2, 16)  # least at the left
    chosen = uncertain_points(maps, 2000, oversample_ratio=2, importance_ratio=1, generator=rng)
    # every 2000 points of all rows, and pairs of neighbours, against 16 equal cells
    for values in (extra, points[:, :2000:2] * torch.tensor([1.0, 0.0])):
        cells = (values[..., 0] * 16).long().flatten().bincount(minlength=16)
        expected = cells.sum() / 16
        assert ((cells - expected) ** 2 / expected).sum() < 60  # 15 degrees of freedom: 5e-7
    cells = (extra * 4).long() @ torch.tensor([1, 4])
    expected = cells.numel() / 16
    assert ((cells.flatten().bincount(minlength=16) - expected) ** 2 / expected).sum() < 60
    # order statistics: mean i / (n + 1), variance i (n + 1 - i) / (n + 1)^2 / (n + 2)
    i = torch.arange(1, 2001) / 2001
    deviation = (extra[..., 1].mean(0) - i) / (i * (1 - i) / 2002 / 40).sqrt()
    assert deviation.abs().max() < 7
    assert (extra[..., 1].diff() >= 0).all()
    assert (chosen[..., 0] < 0.55).float().mean() > 0.9  # the others lie at edges, blended with zeros outside
    assert extra.unique(dim=0).shape == extra.shape
    assert (
        abs((extra[..., 0] - 0.5).flatten()[1:] @ (extra[..., 0] - 0.5).flatten()[:-1]) < 7 * 80000**0.5 / 12
    )


def test_any_number_of_threads_gives_the_same_points(rng: torch.Generator) -> None:
    maps = torch.randn(9, 1, 33, 65, generator=rng)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(uncertain_points(maps, 3000, generator=seeded(3)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_map_that_is_not_there_is_refused(backend: str) -> None:
    maps = torch.zeros(3, 1, 8, 8)
    with use_backend(backend), pytest.raises(ValueError, match=r"map_index: .*M = 3; got 3 at row 1"):
        uncertain_points(maps, 10, map_index=torch.tensor([0, 3]))
    with use_backend(backend), pytest.raises(TypeError, match=r"map_index: .*int32"):
        uncertain_points(maps, 10, map_index=torch.tensor([0, 1], dtype=torch.int32))


def test_rows_are_treated_some_at_a_time(rng: torch.Generator) -> None:
    maps = torch.randn(7, 1, 8, 8, generator=rng)
    candidates, extra = torch.rand(7, 30, 2, generator=rng), torch.rand(7, 3, 2, generator=rng)

    def call() -> Tensor:
        return uncertain_points(maps, 10, candidates=candidates, extra=extra)

    with use_backend("reference"):
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
