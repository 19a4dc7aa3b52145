"""Multi-scale deformable attention and its module against fundamentalvision/Deformable-DETR."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.ops import ms_deform_attn, ms_deform_attn_classic, use_backend
from tests.golden import case as golden
from tests.golden.case import Case

# backend, dtype, device
RUNS = [
    ("cpu", torch.float32, "cpu"),
    ("reference", torch.float32, "cpu"),
    ("reference", torch.float64, "cpu"),
    *((name, torch.float32, "cuda") for name in ("cuda", "triton") if torch.cuda.is_available()),
]


# of the detectors' cases, none has arrays of these names; f32/ is what float32 made of the same inputs
OPERATOR = [case for case in golden.find_arrays("locations") if "/f32/" not in case.id]
MODULE = [
    case
    for case in golden.find_arrays("grad/sampling_offsets.weight")
    if f"{case.values[1].split('/')[0]}/input_flatten" in golden.load(case.values[0])
    and "/f32/" not in case.id
]


def _close(
    case: Case, name: str, actual: Tensor, dtype: torch.dtype, share: float, ignore: Any = None
) -> None:
    """Within `share` of the largest entry (2e-7 for float64: the arrays are rounded to float32)."""
    expected = case[name].double()
    difference = (actual.detach().cpu().double().view_as(expected) - expected).abs()
    if ignore is not None:
        difference = difference.masked_fill(ignore, 0)
    share = 2e-7 if dtype == torch.float64 else share
    largest = expected.abs().max()
    assert difference.max() <= share * largest, (
        f"{name}: {difference.max() / largest:.1e} of the largest entry"
    )


@pytest.mark.parametrize(("backend", "dtype", "device"), RUNS)
@pytest.mark.parametrize(("name", "group"), OPERATOR)
def test_operator(name: str, group: str, backend: str, dtype: torch.dtype, device: str) -> None:
    case = golden.load(name)
    value, locations, weights = (
        case[f"{group}/{array}"].to(device, dtype).requires_grad_()
        for array in ("value", "locations", "weights")
    )
    shapes, starts = case[f"{group}/spatial_shapes"], case[f"{group}/level_start_index"]
    out = ms_deform_attn(value, shapes, locations, weights, backend=backend)
    _close(case, f"{group}/out", out, dtype, 2e-5)
    classic = ms_deform_attn_classic(value, shapes, starts, locations, weights, 2, backend=backend)
    torch.testing.assert_close(classic, out, rtol=0, atol=0)

    by_value, by_locations, by_weights = torch.autograd.grad(
        out, (value, locations, weights), case[f"{group}/grad_out"].to(device, dtype)
    )
    _close(case, f"{group}/grad_value", by_value, dtype, 2e-5)
    _close(case, f"{group}/grad_weights", by_weights, dtype, 2e-5)
    if f"{group}/grad_locations" in case:
        # exactly one pixel outside, implementations may differ
        either = None
        if f"{group}/at_minus_one" in case:
            either = case[f"{group}/at_minus_one"].bool()[..., None]
        _close(case, f"{group}/grad_locations", by_locations, dtype, 1e-4, either)


@pytest.mark.parametrize(("backend", "dtype", "device"), RUNS)
@pytest.mark.parametrize(("name", "variant"), MODULE)
def test_module(name: str, variant: str, backend: str, dtype: torch.dtype, device: str) -> None:
    case = golden.load(name)
    group = variant.split("/")[0]
    config = case.config[group]
    module = MSDeformAttn(config["d_model"], config["n_levels"], config["n_heads"], config["n_points"]).to(
        device, dtype
    )
    module.load_state_dict({key: array.to(dtype) for key, array in case.state_dict().items()})
    dims = case[f"{variant}/grad_reference_points"].shape[-1]
    query, flat, reference = (
        case[f"{group}/{array}"].to(device, dtype).requires_grad_()
        for array in ("query", "input_flatten", f"reference_points_{dims}d")
    )
    mask = None if variant.endswith("nomask") else case[f"{group}/padding_mask"].bool().to(device)
    starts = case[f"{group}/level_start_index"]
    with use_backend(ms_deform_attn=backend):
        out = module(query, reference, flat, case[f"{group}/spatial_shapes"], starts, mask)
        out.backward(case[f"{group}/grad_out"].to(device, dtype))
    _close(case, f"{variant}/out", out, dtype, 2e-5)
    gradients = {"query": query, "input_flatten": flat, "reference_points": reference}
    for array, leaf in gradients.items():
        assert leaf.grad is not None
        _close(case, f"{variant}/grad_{array}", leaf.grad, dtype, 1e-4)
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        _close(case, f"{variant}/grad/{key}", parameter.grad, dtype, 1e-4)
