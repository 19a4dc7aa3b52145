"""Point sampling and the choice of uncertain points against detectron2's PointRend."""

from __future__ import annotations

import pytest
import torch

from detr_fast.criterion.points import uncertain_points
from detr_fast.ops import point_sample
from tests.golden import case as golden

BACKENDS = [
    pytest.param(name, device, id=f"{name}-{device}")
    for name, device in (("cpu", "cpu"), ("reference", "cpu"), ("cuda", "cuda"), ("triton", "cuda"))
    if device == "cpu" or torch.cuda.is_available()
]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("name", "group"), golden.find_arrays("grad_input"))
def test_point_sample(name: str, group: str, backend: str, device: str) -> None:
    case = golden.load(name)
    maps = case[f"{group}/input"].to(device).requires_grad_()
    out = point_sample(maps, case[f"{group}/coords"].to(device), backend=backend)
    torch.testing.assert_close(out.cpu(), case[f"{group}/output"], rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(out, maps, case[f"{group}/cotangent"].to(device))
    torch.testing.assert_close(grad.cpu(), case[f"{group}/grad_input"], rtol=1e-5, atol=1e-5)
    if f"{group}/coords_grid" in case:
        grid = case[f"{group}/coords_grid"].to(device)
        out = point_sample(maps, grid.flatten(1, 2), backend=backend).unflatten(2, grid.shape[1:3])
        torch.testing.assert_close(out.cpu(), case[f"{group}/output_grid"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "group"), golden.find_arrays("sampled_uncertainty"))
def test_uncertain_points(name: str, group: str) -> None:
    case = golden.load(name)
    parent, variant = group.rsplit("/", 1)
    options = case.config[f"{parent}_variants"][variant]
    num_points, logits = options["num_points"], case[f"{parent}/logits"]
    candidates = case[f"{group}/oversampled"]
    random = f"{group}/random"
    extra = case[random] if random in case else candidates.new_empty(len(logits), 0, 2)
    actual = uncertain_points(
        logits,
        num_points,
        oversample_ratio=options["oversample_ratio"],
        importance_ratio=options["importance_sample_ratio"],
        candidates=candidates,
        extra=extra,
    )
    sampled = -point_sample(logits, candidates)[:, 0].abs()
    torch.testing.assert_close(sampled, case[f"{group}/sampled_uncertainty"], rtol=1e-5, atol=1e-5)
    expected = case[f"{group}/point_coords"]
    for a, e in zip(actual.tolist(), expected.tolist(), strict=True):
        assert sorted(a) == sorted(e)  # near ties may change places
    torch.testing.assert_close(actual[:, num_points - extra.shape[1] :], extra, rtol=0, atol=0)
