"""Every operator x case x backend keeps the same promises.

A new operator joins by adding `tests/ops/cases/<operator>.py` with a list `CONTRACTS`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.ops.cases as case_modules
from detr_fast.ops import BackendUnavailable, use_backend
from detr_fast.ops.operator import ORDER
from tests.ops.contract import BadInput, Case, Contract, Inputs, convert, to_float64
from tests.ops.simulated import SIMULATED, is_slow, labels, simulated
from tests.ops.simulated import cases as simulated_cases

CONTRACTS: list[Contract] = [
    contract
    for module in pkgutil.iter_modules(case_modules.__path__)
    for contract in importlib.import_module(f"tests.ops.cases.{module.name}").CONTRACTS
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _serves(contract: Contract, backend: str, device: str, dtype: torch.dtype) -> bool:
    return contract.operator.explain(torch.device(device), dtype)[backend] is None


RUNS = [
    pytest.param(contract, backend, device, dtype, id=f"{contract.name}-{backend}-{device}-{str(dtype)[6:]}")
    for contract in CONTRACTS
    for device in DEVICES
    for dtype in (*contract.dtypes, torch.float64)
    for backend in ORDER
    if _serves(contract, backend, device, dtype)
] + [
    pytest.param(contract, label, "cpu", dtype, id=f"{contract.name}-{label}-cpu-{str(dtype)[6:]}")
    for contract in CONTRACTS
    for label in labels(contract.operator)
    for dtype in contract.dtypes
]


CASES = [
    pytest.param(*run.values, case, id=f"{run.id}-{case.name}")
    for run in RUNS
    for case in simulated_cases(run.values[0], run.values[1], run.values[3])
]
BITWISE = [p for p in RUNS if p.values[3] == torch.float32 or not is_slow(p.values[0].operator, p.values[1])]
TYPICAL = [pytest.param(c, id=c.name) for c in CONTRACTS]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend to pin; a simulated one takes the place of the one it simulates."""
    run = request.node.callspec.params
    if run["device"] == "cpu" and (request.param, run["contract"].operator.name) in SIMULATED:
        with simulated(run["contract"].operator, request.param) as name:
            yield name
    else:
        yield request.param


@pytest.fixture
def reproducible(backend: str, device: str) -> None:
    """Makes what sums in no fixed order by default give the same bits again, torch's own kernels included."""
    if backend in GPU_BACKENDS or device == "cuda":
        torch.use_deterministic_algorithms(True)


def _tolerance(contract: Contract, dtype: torch.dtype, backward: bool) -> float:
    if dtype == torch.float64:
        return 1e-9
    tolerance = contract.dtypes[dtype]
    return tolerance.backward if backward else tolerance.forward


def _compare(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape, f"{name}: {list(actual.shape)} against {list(expected.shape)}"
    if expected.numel() == 0:
        return
    scale = expected.abs().max().clamp(min=1e-30)
    error = (actual.cpu().double() - expected).abs().max() / scale
    assert error <= tolerance, f"{name}: error {error:.2e} of the largest entry, allowed {tolerance:.0e}"


def _with_gradients(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    return {k: v.detach().clone().requires_grad_() if k in names else v for k, v in inputs.items()}


def _gradients(
    contract: Contract, inputs: Inputs, grad_out: Tensor, names: tuple[str, ...], **kw: Any
) -> list[Tensor]:
    leaves = _with_gradients(inputs, names)
    out = contract.function(**leaves, **kw)
    return list(torch.autograd.grad(out, [leaves[n] for n in names], grad_out.to(out.device, out.dtype)))


def _grad_out(contract: Contract, inputs: Inputs, rng: torch.Generator) -> Tensor:
    out = contract.function(**inputs, backend="reference")
    return torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out.dtype)


@pytest.fixture
def poisoned() -> Any:
    """Fresh memory is filled with NaN (floats) or the largest value (integers)."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("contract", "backend", "device", "dtype", "case"), CASES, indirect=["backend"])
def test_forward_equals_float64_reference(
    contract: Contract,
    backend: str,
    device: str,
    dtype: torch.dtype,
    case: Case,
    rng: torch.Generator,
    poisoned: None,
) -> None:
    inputs = convert(case.inputs(rng), contract, dtype, device)
    before = {k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}
    actual = contract.function(**inputs, backend=backend)
    wide = to_float64(inputs)
    expected = contract.function(**wide, backend="reference")
    if contract.check:
        contract.check(wide, actual, expected)
    else:
        assert actual.dtype == contract.function(**inputs).dtype
        _compare("output", actual, expected, _tolerance(contract, dtype, backward=False))
    for name, tensor in before.items():
        torch.testing.assert_close(
            inputs[name], tensor, rtol=0, atol=0, equal_nan=True, msg=f"{name} was written to"
        )


DIFFERENTIABLE = [p for p in CASES if p.values[0].differentiable]
GPU_BACKENDS = ("cuda", "triton")


@pytest.mark.parametrize(
    ("contract", "backend", "device", "dtype", "case"), DIFFERENTIABLE, indirect=["backend"]
)
def test_gradients_equal_float64_reference(
    contract: Contract,
    backend: str,
    device: str,
    dtype: torch.dtype,
    case: Case,
    rng: torch.Generator,
    poisoned: None,
) -> None:
    names = contract.differentiable
    inputs = convert(case.inputs(rng), contract, dtype, device)
    grad_out = _grad_out(contract, inputs, rng)
    expected = _gradients(contract, to_float64(inputs), grad_out.double(), names, backend="reference")
    for mode in contract.gradient_modes if backend in GPU_BACKENDS else ({},):
        actual = _gradients(contract, inputs, grad_out, names, backend=backend, **mode)
        for name, a, e in zip(names, actual, expected, strict=True):
            assert a.dtype == inputs[name].dtype
            _compare(f"grad_{name}, {mode}", a, e, _tolerance(contract, dtype, backward=True))


@pytest.mark.parametrize(
    ("contract", "backend", "device", "dtype"),
    [p for p in BITWISE if p.values[0].differentiable],
    indirect=["backend"],
)
def test_each_gradient_alone_equals_all_together(
    contract: Contract,
    backend: str,
    device: str,
    dtype: torch.dtype,
    rng: torch.Generator,
    reproducible: None,
) -> None:
    inputs = convert(contract.cases[0].inputs(rng), contract, dtype, device)
    grad_out = _grad_out(contract, inputs, rng)
    together = _gradients(contract, inputs, grad_out, contract.differentiable, backend=backend)
    for name, expected in zip(contract.differentiable, together, strict=True):
        (alone,) = _gradients(contract, inputs, grad_out, (name,), backend=backend)
        torch.testing.assert_close(alone, expected, rtol=0, atol=0, msg=f"grad_{name}")


@pytest.mark.parametrize(("contract", "backend", "device", "dtype"), BITWISE, indirect=["backend"])
def test_strided_inputs_give_the_same_bits(
    contract: Contract,
    backend: str,
    device: str,
    dtype: torch.dtype,
    rng: torch.Generator,
    reproducible: None,
) -> None:
    inputs = convert(contract.cases[0].inputs(rng), contract, dtype, device)
    strided = {
        k: torch.stack([v, torch.full_like(v, 77)], dim=-1)[..., 0] if isinstance(v, Tensor) else v
        for k, v in inputs.items()
    }
    assert not any(isinstance(v, Tensor) and v.numel() > 1 and v.is_contiguous() for v in strided.values())
    torch.testing.assert_close(
        contract.function(**strided, backend=backend),
        contract.function(**inputs, backend=backend),
        rtol=0,
        atol=0,
    )
    if contract.differentiable:
        grad_out = _grad_out(contract, inputs, rng)
        strided_grad = torch.stack([grad_out, grad_out], dim=-1)[..., 0]
        names = contract.differentiable
        for a, b in zip(
            _gradients(contract, strided, strided_grad, names, backend=backend),
            _gradients(contract, inputs, grad_out, names, backend=backend),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("contract", "backend", "device", "dtype"),
    [p for p in BITWISE if "reference" not in p.id],
    indirect=["backend"],
)
def test_runs_and_thread_counts_give_the_same_bits(
    contract: Contract,
    backend: str,
    device: str,
    dtype: torch.dtype,
    rng: torch.Generator,
    reproducible: None,
) -> None:
    on_host = backend in GPU_BACKENDS and device == "cpu"  # simulated: slow
    for case in contract.cases[:1] if on_host else contract.cases:
        inputs = convert(case.inputs(rng), contract, dtype, device)
        grad_out = _grad_out(contract, inputs, rng) if contract.differentiable else None
        seen: list[list[Tensor]] = []
        for threads in (1, 2, 3, 1) if backend == "cpu" else (1, 1):
            torch.set_num_threads(threads)
            results = [contract.function(**inputs, backend=backend)]
            if grad_out is not None:
                results += _gradients(contract, inputs, grad_out, contract.differentiable, backend=backend)
            seen.append(results)
        for other in seen[1:]:
            for a, b in zip(seen[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=case.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("contract", TYPICAL)
def test_compiles_as_one_graph(contract: Contract, dtype: torch.dtype, rng: torch.Generator) -> None:
    torch.compiler.reset()  # all contracts share the code object below, and with it a recompilation limit
    inputs = convert(contract.cases[0].inputs(rng), contract, dtype)
    compiled = torch.compile(lambda kw: contract.function(**kw), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), contract.function(**inputs), rtol=0, atol=0)
    if contract.differentiable:
        names = contract.differentiable
        grad_out = _grad_out(contract, inputs, rng)
        leaves = _with_gradients(inputs, names)
        actual = torch.autograd.grad(compiled(leaves), [leaves[n] for n in names], grad_out)
        rounding = 0 if dtype == torch.float32 else 1e-12  # the reference sums in another order
        for a, e in zip(actual, _gradients(contract, inputs, grad_out, names), strict=True):
            torch.testing.assert_close(a, e, rtol=rounding, atol=rounding)


class _Call(torch.nn.Module):
    """The operator as a module: what `torch.export` takes. Arguments that are no tensors are constants."""

    def __init__(self, contract: Contract, constants: Inputs) -> None:
        super().__init__()
        self.contract, self.constants = contract, constants

    def forward(self, **tensors: Tensor) -> Any:
        return self.contract.function(**tensors, **self.constants)


@pytest.mark.parametrize("contract", TYPICAL)
def test_exports(contract: Contract, rng: torch.Generator) -> None:
    inputs = convert(contract.cases[0].inputs(rng), contract, torch.float32)
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    call = _Call(contract, {k: v for k, v in inputs.items() if k not in tensors})
    exported = torch.export.export(call, (), tensors, strict=False).module()
    torch.testing.assert_close(exported(**tensors), contract.function(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("contract", TYPICAL)
def test_autocast_keeps_coordinates_and_runs(contract: Contract, rng: torch.Generator) -> None:
    inputs = convert(contract.cases[0].inputs(rng), contract, torch.float32)
    expected = contract.function(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = contract.function(**inputs)
    if contract.check:
        contract.check(to_float64(inputs), actual, expected)
    else:
        _compare("output under autocast", actual, expected.double(), contract.dtypes[torch.bfloat16].forward)


@pytest.mark.parametrize("contract", TYPICAL)
def test_pin_by_argument_and_context(contract: Contract, rng: torch.Generator) -> None:
    inputs = convert(contract.cases[0].inputs(rng), contract, torch.float32)
    by_argument = contract.function(**inputs, backend="reference")
    with use_backend("reference"):
        torch.testing.assert_close(contract.function(**inputs), by_argument, rtol=0, atol=0)
    refused = next(
        name for name, why in contract.operator.explain(torch.device("cpu"), torch.float32).items() if why
    )
    with pytest.raises(BackendUnavailable, match=refused):
        contract.function(**inputs, backend=refused)
    with use_backend(refused), pytest.raises(BackendUnavailable, match=refused):
        contract.function(**inputs)
    with pytest.raises(ValueError, match="backend: expected one of"):
        contract.function(**inputs, backend="fastest")


BAD = [pytest.param(c, bad, id=f"{c.name}-{bad.name}") for c in CONTRACTS for bad in c.bad_inputs]


@pytest.mark.parametrize(("contract", "bad"), BAD)
def test_bad_input_raises_a_clear_error(contract: Contract, bad: BadInput, rng: torch.Generator) -> None:
    inputs = bad.change(convert(contract.cases[0].inputs(rng), contract, torch.float32))
    with pytest.raises(bad.error, match=bad.message):
        contract.function(**inputs)
