"""Multi-scale deformable attention on a GPU: real sizes, streams, graphs, devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR
from tests.ops.cases.ms_deform_attn import GEOMETRIES, Geometry, fused_inputs, plain_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda", 0)
ENCODER_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
ENCODER = Geometry(ENCODER_LEVELS, queries=sum(h * w for h, w in ENCODER_LEVELS), heads=8)
DECODER = Geometry(ENCODER_LEVELS, queries=300, heads=8)
FUNCTIONS = {"plain": (ms_deform_attn, plain_inputs), "fused": (ms_deform_attn_fused, fused_inputs)}


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = OPERATOR.explain(DEVICE, torch.float32)[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


@pytest.fixture
def all_memory() -> Iterator[None]:
    """Leaves no test of this process anything that another has cached."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


def large(test: Any) -> Any:
    return pytest.mark.large(pytest.mark.usefixtures("all_memory")(test))


class Call:
    """One call on the device: `leaves` hold its tensors, in the order of the gradients."""

    def __init__(
        self,
        form: str,
        geometry: Geometry,
        rng: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device = DEVICE,
        **options: Any,
    ) -> None:
        self.function, make = FUNCTIONS[form]
        given = make(geometry, rng)
        self.shapes = given.pop("spatial_shapes")
        self.leaves = {
            name: t.to(device, dtype if name == "value" else torch.float32).requires_grad_()
            for name, t in given.items()
        }
        shape = (geometry.batch, geometry.queries, geometry.heads * geometry.channels)
        self.grad_out = torch.randn(shape, generator=rng).to(device, dtype)
        self.options = options

    def forward(self) -> Tensor:
        return self.function(spatial_shapes=self.shapes, **self.leaves, **self.options)

    def forward_and_gradients(self) -> list[Tensor]:
        out = self.forward()
        return [out.detach(), *torch.autograd.grad(out, list(self.leaves.values()), self.grad_out)]

    def refill(self, rng: torch.Generator) -> None:
        """Other numbers in the same memory."""
        with torch.no_grad():
            for t in (*self.leaves.values(), self.grad_out):
                t.copy_(torch.rand(t.shape, generator=rng))


def equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        scale = max(e.abs().max().item(), 1e-30)
        assert (a.double() - e.double()).abs().max().item() <= tolerance * scale


@large
@pytest.mark.parametrize("form", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_real_sizes_equal_the_reference(
    backend: str, geometry: Geometry, dtype: torch.dtype, form: str, rng: torch.Generator
) -> None:
    if torch.cuda.get_device_properties(DEVICE).total_memory < 40 * 2**30:
        pytest.skip("the float64 reference needs 40 GiB of device memory")
    call = Call(form, geometry, rng, dtype, backend=backend)
    actual = call.forward_and_gradients()
    call.options = {"backend": "reference"}
    call.leaves = {name: t.detach().double().requires_grad_() for name, t in call.leaves.items()}
    call.grad_out = call.grad_out.double()
    close(actual, call.forward_and_gradients(), 2e-2 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.parametrize("form", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_runs_are_bitwise_equal(
    backend: str, dtype: torch.dtype, form: str, rng: torch.Generator
) -> None:
    call = Call(form, ENCODER, rng, dtype, backend=backend, deterministic=True)
    first = call.forward_and_gradients()
    for _ in range(3):
        equal(call.forward_and_gradients(), first)
    call.options["deterministic"] = None
    torch.use_deterministic_algorithms(True)
    equal(call.forward_and_gradients(), first)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("form", FUNCTIONS)
def test_graph_capture_and_replay(backend: str, form: str, deterministic: bool, rng: torch.Generator) -> None:
    call = Call(form, GEOMETRIES["typical"], rng, backend=backend, deterministic=deterministic)
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):  # compiles and loads kernels before the capture
        call.forward_and_gradients()
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = call.forward_and_gradients()
    for _ in range(3):
        call.refill(rng)
        for t in captured:
            t.fill_(torch.nan)
        graph.replay()
        close(captured, call.forward_and_gradients(), 0 if deterministic else 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_stream_that_is_not_the_default(backend: str, deterministic: bool, rng: torch.Generator) -> None:
    """Work must queue behind a slow producer on its own stream, whatever the default stream does."""
    call = Call("fused", GEOMETRIES["typical"], rng, backend=backend, deterministic=deterministic)
    expected = call.forward_and_gradients()
    sources = {name: t.detach().clone() for name, t in call.leaves.items()}
    with torch.no_grad():
        for t in call.leaves.values():
            t.fill_(torch.nan)
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
        with torch.no_grad():
            for name, t in call.leaves.items():
                t.copy_(sources[name])
        actual = call.forward_and_gradients()
        assert not stream.query(), "the producer was not slow enough, or a call waited for the device"
    stream.synchronize()
    close(actual, expected, 0 if deterministic else 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_device_that_is_not_current(backend: str, deterministic: bool, rng: torch.Generator) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    other = torch.device("cuda", 1)
    call = Call(
        "fused", GEOMETRIES["typical"], rng, device=other, backend=backend, deterministic=deterministic
    )
    with torch.cuda.device(DEVICE):
        actual = call.forward_and_gradients()
        assert torch.cuda.current_device() == DEVICE.index
    assert all(t.device == other for t in actual)
    with torch.cuda.device(other):
        close(actual, call.forward_and_gradients(), 0 if deterministic else 1e-5)


@pytest.fixture
def no_waiting() -> Any:
    """Switches to an error where PyTorch waits for the device."""

    def switch() -> None:
        torch.cuda.set_sync_debug_mode("error")

    yield switch
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("form", FUNCTIONS)
def test_nothing_waits_for_the_device(
    backend: str, form: str, deterministic: bool, no_waiting: Callable[[], None], rng: torch.Generator
) -> None:
    call = Call(form, GEOMETRIES["typical"], rng, backend=backend, deterministic=deterministic)
    call.forward_and_gradients()
    no_waiting()
    call.forward_and_gradients()


def test_sizes_on_the_device_are_read_back(backend: str, rng: torch.Generator) -> None:
    call = Call("plain", GEOMETRIES["typical"], rng, backend=backend)
    expected = call.forward()
    call.shapes = torch.tensor(call.shapes, device=DEVICE)
    equal([call.forward()], [expected])


@pytest.mark.parametrize("form", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_misaligned_views_give_the_same_bits(
    backend: str, dtype: torch.dtype, form: str, rng: torch.Generator
) -> None:
    call = Call(form, GEOMETRIES["typical"], rng, dtype, backend=backend, deterministic=True)
    expected = call.forward_and_gradients()

    def moved(t: Tensor) -> Tensor:
        place = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape)
        assert place.data_ptr() % 16
        return place.copy_(t.detach())

    call.leaves = {name: moved(t).requires_grad_() for name, t in call.leaves.items()}
    call.grad_out = moved(call.grad_out)
    equal(call.forward_and_gradients(), expected)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("form", FUNCTIONS)
def test_each_gradient_alone(backend: str, form: str, deterministic: bool, rng: torch.Generator) -> None:
    call = Call(form, GEOMETRIES["typical"], rng, backend=backend, deterministic=deterministic)
    _, *together = call.forward_and_gradients()
    every = call.leaves
    for (name, leaf), expected in zip(every.items(), together, strict=True):
        call.leaves = {k: t.detach() for k, t in every.items()} | {name: leaf}
        (alone,) = torch.autograd.grad(call.forward(), leaf, call.grad_out)
        close([alone], [expected], 0 if deterministic or name != "value" else 1e-5)


@large
def test_offsets_beyond_int32(backend: str, rng: torch.Generator) -> None:
    """Elements of value, and of its gradient, beyond number 2**31."""
    geometry = Geometry(((2040, 2049), (2, 2)), batch=2, queries=64, heads=8, channels=0)
    given = plain_inputs(geometry, rng)
    shape = (*given["value"].shape[:3], 64)
    elements = math.prod(shape)
    assert elements // 2 < 2**31 < elements
    if torch.cuda.mem_get_info(DEVICE)[0] < 10 * elements:
        pytest.skip(f"needs {10 * elements / 2**30:.0f} GiB of free device memory")
    locations = given["sampling_locations"].float().to(DEVICE)
    weights = given["attention_weights"].float().to(DEVICE)
    value = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_().requires_grad_()
    for deterministic in (False, True):
        out = ms_deform_attn(
            value, geometry.shapes(), locations, weights, backend=backend, deterministic=deterministic
        )
        (actual,) = torch.autograd.grad(out, value, torch.ones_like(out))
        last = value.detach()[1:].clone().requires_grad_()  # alone, its offsets fit
        expected = ms_deform_attn(last, geometry.shapes(), locations[1:], weights[1:], backend=backend)
        (expected_gradient,) = torch.autograd.grad(expected, last, torch.ones_like(expected))
        equal([out[1:]], [expected])
        largest = expected_gradient.abs().max()
        assert largest > 0
        assert expected_gradient.sub_(actual[1:]).abs_().max() <= 1e-2 * largest
        del actual, expected_gradient, last


@pytest.mark.parametrize("form", FUNCTIONS)
def test_compiles_with_inductor(backend: str, form: str, rng: torch.Generator) -> None:
    pytest.importorskip("triton", reason="inductor needs triton")
    torch.compiler.reset()
    call = Call(form, GEOMETRIES["typical"], rng, backend=backend, deterministic=True)
    expected = call.forward_and_gradients()
    eager = call.function

    def scaled(**arguments: Any) -> Tensor:
        return 2 * eager(**arguments)

    call.function = torch.compile(scaled, fullgraph=True)
    close(call.forward_and_gradients(), [2 * t for t in expected], 1e-6)


def test_a_second_derivative_is_refused(backend: str, rng: torch.Generator) -> None:
    call = Call("plain", GEOMETRIES["tiny_levels"], rng, backend=backend)
    value = call.leaves["value"]
    (gradient,) = torch.autograd.grad(call.forward().square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference' can"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    call = Call("fused", GEOMETRIES["typical"], rng, backend=backend, deterministic=True)
    expected = call.forward_and_gradients()
    with torch.autocast("cuda", dtype):
        equal(call.forward_and_gradients(), expected)


def test_mixed_devices_are_refused(backend: str, rng: torch.Generator) -> None:
    call = Call("plain", GEOMETRIES["typical"], rng, backend=backend)
    call.leaves["attention_weights"] = call.leaves["attention_weights"].detach().cpu()
    with pytest.raises(ValueError, match="attention_weights: expected value's device cuda:0; got cpu"):
        call.forward()
