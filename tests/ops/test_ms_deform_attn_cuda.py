"""What the CUDA backend does around its kernels, which run on the host here."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR, cuda, ordered
from tests.ops.cases.ms_deform_attn import Geometry, fused_inputs, packed_inputs
from tests.ops.simulated import simulated
from tests.simt.build import simt_module

ODD = Geometry(((3, 5), (2, 2)), batch=5, queries=3, heads=1, channels=3, points=1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("value", "reference_points", "sampling_offsets", "attention_logits")


class Counted:
    """The module of kernels, with the names of what was launched."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def launch(*arguments: Any) -> Any:
            self.launched.append(name.removeprefix("ms_deform_attn_cuda_"))
            return getattr(simt_module(), name)(*arguments)

        return launch


def given(rng: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    inputs = fused_inputs(ODD, rng)
    return {
        k: v.to(dtype if k == "value" else torch.float32) if isinstance(v, Tensor) else v
        for k, v in inputs.items()
    }


def gradients(inputs: dict[str, Any], grad_out: Tensor, names: tuple[str, ...] = NAMES) -> list[Tensor]:
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    with simulated(OPERATOR, "host") as backend:
        out = ms_deform_attn_fused(**{**inputs, **leaves}, backend=backend, deterministic=True)
        return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad_out)]


def grad_out(rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(ODD.batch, ODD.queries, ODD.heads * ODD.channels, generator=rng).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ms_deform_attn_host_misaligned_views(dtype: torch.dtype, rng: torch.Generator) -> None:
    def moved(t: Tensor) -> Tensor:
        place = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        assert place.is_contiguous()
        assert place.data_ptr() % 16
        return place.copy_(t)

    inputs, gradient = given(rng, dtype), grad_out(rng, dtype)
    views = {k: moved(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    for a, e in zip(gradients(views, moved(gradient)), gradients(inputs, gradient), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ms_deform_attn_host_images_in_parts(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """A deterministic backward that sorts two images at a time gives the bits of one that sorts them all."""
    inputs, gradient = given(rng, dtype), grad_out(rng, dtype)
    whole = gradients(inputs, gradient)
    cells = sum((height + 1) * (width + 1) for height, width in ODD.levels) + 1
    monkeypatch.setattr(ordered, "_SORTED_AT_ONCE", 2 * cells)  # more of them than of samples
    for a, e in zip(gradients(inputs, gradient), whole, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_ms_deform_attn_host_launches_only_what_is_needed(rng: torch.Generator) -> None:
    call = packed_inputs(ODD, rng, fused=True)
    in_order = ["cells", "bin", "gather"]
    for needs, deterministic, launches in (
        ((False, False, False, False), False, []),
        ((True, False, False, False), False, ["bwd"]),
        ((True, False, False, False), True, in_order),
        ((False, False, True, False), True, ["bwd"]),
        ((True, True, True, True), True, ["bwd", *in_order]),
    ):
        kernels = Counted()
        found = cuda.Cuda(lambda kernels=kernels: kernels).backward(
            grad_out(rng, torch.float32), call._replace(deterministic=deterministic), needs
        )
        assert kernels.launched == launches
        assert [gradient is not None for gradient in found] == list(needs)


@pytest.mark.parametrize("setting", [False, True])
@pytest.mark.parametrize("argument", [None, False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_ms_deform_attn_host_deterministic_argument_and_setting(
    argument: bool | None,
    setting: bool,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
) -> None:
    """The argument decides, or else the setting at the time of backward."""
    inputs, kernels = given(rng), Counted()
    inputs["value"].requires_grad_()
    inputs["deterministic"] = argument
    torch.compiler.reset()
    function: Callable[..., Tensor] = ms_deform_attn_fused
    if compiled:
        function = torch.compile(ms_deform_attn_fused, fullgraph=True, backend="aot_eager")
    with simulated(OPERATOR, "host"):
        monkeypatch.setattr(OPERATOR.backends["cuda"].implementation, "_module", lambda: kernels)
        if compiled:  # the compiler asks for one setting in both passes
            torch.use_deterministic_algorithms(setting)
        out = function(**inputs)
        torch.use_deterministic_algorithms(setting)
        out.sum().backward()
    in_order = setting if argument is None else argument
    assert ("gather" in kernels.launched) == in_order
    assert ("bwd" in kernels.launched) != in_order


def test_ms_deform_attn_host_too_many_levels(rng: torch.Generator) -> None:
    many = Geometry(((1, 1),) * 129, batch=1, queries=1, heads=1, channels=8, points=1)
    inputs = {k: v.float() if isinstance(v, Tensor) else v for k, v in fused_inputs(many, rng).items()}
    with simulated(OPERATOR, "host"), pytest.raises(ValueError, match=r"spatial_shapes: .*128"):
        ms_deform_attn_fused(**inputs, backend="cuda")


@pytest.mark.parametrize("backend", ["host", "cpu"])
def test_ms_deform_attn_host_absurd_sizes(backend: str) -> None:
    """Expanded views whose copies no machine could hold: an error, and nothing is touched."""
    value = torch.zeros(1).expand(2**20, 4, 2**20, 64)
    locations = torch.zeros(1).expand(2**20, 2**10, 2**20, 1, 2**10, 2)
    with simulated(OPERATOR, "host") as name, pytest.raises((ValueError, RuntimeError, MemoryError)):
        ms_deform_attn(
            value,
            [(2, 2)],
            locations,
            locations[..., 0],
            backend=name if backend == "host" else backend,
        )


def test_ms_deform_attn_cuda_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device, serves = torch.device("cuda", 1), OPERATOR.backends["cuda"].why_not

    def built(**changes: Any) -> SimpleNamespace:
        info = {"error": None, "architectures": "75-real 80-real"}
        module = {"with_cuda": True, "why_not_cuda": "", "cuda_info": lambda: info | changes}
        return SimpleNamespace(
            **module, cuda_device=lambda index: (changes.get("sm", 80), changes.get("why"))
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module, reason in (
        (built(), None),
        (built(sm=90, why="no kernel image"), r"no kernels for this GPU \(sm_90\), only for 75-real 80-real"),
        (built(error="no CUDA-capable device is detected"), "finds no device: no CUDA-capable device"),
        (SimpleNamespace(with_cuda=False, why_not_cuda="no nvcc"), "not compiled in: no nvcc"),
    ):
        monkeypatch.setattr(extension, "_module", module)
        found = serves(device, torch.float32)
        assert found is None if reason is None else re.search(reason, str(found))
    assert "runs on a CUDA device, not on cpu" in str(serves(torch.device("cpu"), torch.float32))
    assert "too coarse for torch.float64" in str(serves(device, torch.float64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(extension, "_module", built())
    assert serves(device, torch.float32) == "torch finds no CUDA device"
    monkeypatch.setattr(extension, "_module", None)
    monkeypatch.setattr(extension, "_error", "it did not import")
    assert serves(device, torch.float32) == "it did not import"
