"""Losses of rows of mask logits, whose gradients are written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detr_fast.criterion.mask_losses import Focal, MapLosses, RowLosses
from tests.criterion.test_masks import dice_ref, focal_ref, random_masks


@pytest.mark.parametrize("focal", [None, Focal(), Focal(-1, 2), Focal(0.6, 0), Focal(0.3, 1.5)])
def test_gradients_of_rows(focal: Focal | None, rng: torch.Generator) -> None:
    """First and second derivatives, soft targets."""
    x = (2 * torch.randn(3, 7, generator=rng, dtype=torch.float64)).requires_grad_()
    t = torch.rand(3, 7, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: RowLosses.apply(x, t, focal), x)
    assert torch.autograd.gradgradcheck(lambda x: RowLosses.apply(x, t, focal), x)


def test_rows_that_are_treated_some_at_a_time(rng: torch.Generator) -> None:
    """More values than one piece holds; two rows share a map."""
    maps = torch.randn(4, 101, 127, generator=rng, dtype=torch.float64).requires_grad_()
    masks = random_masks(3, (404, 508), rng)
    map_index, target_index = torch.tensor([3, 0, 3, 2, 1]), torch.tensor([0, 1, 2, 0, 1])
    weight = torch.rand(2, 5, generator=rng, dtype=torch.float64)
    x = F.interpolate(maps[map_index][:, None], size=masks.shape[1:], mode="bilinear").flatten(1)
    t = masks[target_index].flatten(1).double()
    expected = torch.stack((focal_ref(x, t).mean(1), dice_ref(x, t)))
    of_maps = torch.stack(MapLosses.apply(maps, masks, map_index, target_index, Focal()))
    of_rows = torch.stack(RowLosses.apply(x, t, Focal()))
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), maps, retain_graph=True)
    for found in (of_maps, of_rows):
        torch.testing.assert_close(found, expected)
        (grad,) = torch.autograd.grad((found * weight).sum(), maps, retain_graph=True)
        torch.testing.assert_close(grad, expected_grad)
