"""Every operator where something records or transforms its calls: nothing is dropped or left unwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.contract import Contract, Inputs, convert
from tests.ops.test_contract import CONTRACTS, TYPICAL

CONSTANT = ("box_match_cost", "mask_match_cost", "linear_assignment")
DIFFERENTIABLE = [pytest.param(c, id=c.name) for c in CONTRACTS if c.differentiable]


class Call:
    """An operator as a function of its tensors alone, in the typical case."""

    def __init__(self, contract: Contract, rng: torch.Generator, **options: Any) -> None:
        self.contract, self.options = contract, options
        self.inputs = convert(contract.cases[0].inputs(rng), contract, torch.float32)
        self.names = [name for name, value in self.inputs.items() if isinstance(value, Tensor)]
        self.tensors = [self.inputs[name] for name in self.names]

    def __call__(self, *tensors: Tensor) -> Tensor:
        given: Inputs = {**self.inputs, **dict(zip(self.names, tensors, strict=True))}
        out = self.contract.function(**given, **self.options)
        assert isinstance(out, Tensor)
        return out

    def others(self, rng: torch.Generator) -> list[Tensor]:
        """The tensors, with values that no recording has seen."""
        return [
            tensor + 0.01 * torch.rand(tensor.shape, generator=rng) if tensor.is_floating_point() else tensor
            for tensor in self.tensors
        ]

    def leaves(self, tensors: list[Tensor]) -> list[Tensor]:
        return [
            tensor.clone().requires_grad_(name in self.contract.differentiable)
            for name, tensor in zip(self.names, tensors, strict=True)
        ]

    def gradients(self, function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
        leaves = self.leaves(tensors)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return list(torch.autograd.grad(function(*leaves).square().sum(), wanted))

    def of_first(self, tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of the first differentiable argument."""
        at = self.names.index(self.contract.differentiable[0])
        return lambda x: self(*(x if i == at else tensor for i, tensor in enumerate(tensors)))

    @property
    def first(self) -> Tensor:
        return self.inputs[self.contract.differentiable[0]]


def spoil_memory() -> None:
    """Fills what the allocator gives out next with sevens."""
    kept = [torch.full((2**n,), 7.0) for n in range(4, 19) for _ in range(4)]
    del kept


def equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contract", TYPICAL)
def test_jit_trace(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    traced = torch.jit.trace(lambda *t: call(*t), tuple(call.tensors), check_trace=False)
    others = call.others(rng)
    spoil_memory()
    equal(traced(*others), call(*others))
    if contract.differentiable:
        traced = torch.jit.trace(lambda *t: call(*t), tuple(call.leaves(call.tensors)), check_trace=False)
        spoil_memory()
        equal(call.gradients(traced, others), call.gradients(call, others))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
@pytest.mark.parametrize("contract", TYPICAL)
def test_make_fx(contract: Contract, mode: str, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    recorded = make_fx(call, tracing_mode=mode)(*call.tensors)
    others = call.others(rng)
    spoil_memory()
    equal(recorded(*others), call(*others))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "detr_fast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("contract", TYPICAL)
def test_opcheck(contract: Contract, rng: torch.Generator) -> None:
    """Of the registered operators that a call and its backward go through."""
    call = Call(contract, rng)
    with _Recorder() as recorder:
        out = call(*call.leaves(call.tensors))
        if contract.differentiable:
            out.sum().backward()
    assert len(recorder.calls) == (2 if contract.differentiable else 1)
    for op, arguments in recorder.calls:
        torch.library.opcheck(op, tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments))
    op, (first, *others) = recorder.calls[0]
    if contract.differentiable:
        torch.library.opcheck(op, (first.detach().requires_grad_(), *others))


@pytest.mark.parametrize("contract", TYPICAL)
def test_tensor_subclass_in_any_place(contract: Contract, rng: torch.Generator) -> None:
    class Wrapped(Tensor):
        pass

    call = Call(contract, rng)
    expected = call(*call.tensors)
    for i in range(len(call.tensors)):
        given = [t.as_subclass(Wrapped) if i == j else t for j, t in enumerate(call.tensors)]
        equal(call(*given).as_subclass(Tensor), expected)


@pytest.mark.parametrize("contract", TYPICAL)
def test_vmap(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    others = call.others(rng)
    expected = torch.stack([call(*call.tensors), call(*others)])
    every = [torch.stack(pair, -1) for pair in zip(call.tensors, others, strict=True)]
    equal(torch.vmap(call, in_dims=-1)(*every), expected)
    first = torch.vmap(lambda x: call(x, *call.tensors[1:]))(torch.stack([call.tensors[0], others[0]]))
    equal(first[0], expected[0])
    equal(first[1], call(others[0], *call.tensors[1:]))


@pytest.mark.parametrize("contract", DIFFERENTIABLE)
def test_functional_transforms(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    one, other = call.first, call.first + 0.01

    def loss(x: Tensor) -> Tensor:
        return call.of_first(call.tensors)(x).square().sum()

    def by_autograd(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    close(torch.func.grad(loss)(one), by_autograd(one))
    result, pull_back = torch.func.vjp(loss, one)  # called when its transform has ended
    close(pull_back(torch.ones_like(result))[0], by_autograd(one))
    both = torch.vmap(torch.func.grad(loss))(torch.stack([one, other]))
    close(both, torch.stack([by_autograd(one), by_autograd(other)]))
    recorded = make_fx(torch.func.grad(loss))(one)
    spoil_memory()
    close(recorded(other), by_autograd(other))


@pytest.mark.parametrize("contract", DIFFERENTIABLE)
def test_batched_gradients(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    leaves = call.leaves(call.tensors)
    out = call(*leaves)
    grad_outs = torch.randn(3, *out.shape, generator=rng)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    batched = torch.autograd.grad(out, wanted, grad_outs, retain_graph=True, is_grads_batched=True)
    for i, grad_out in enumerate(grad_outs):
        close(
            [grad[i] for grad in batched], list(torch.autograd.grad(out, wanted, grad_out, retain_graph=True))
        )


@pytest.mark.parametrize("contract", DIFFERENTIABLE)
def test_forward_mode_is_right_or_refused(contract: Contract, rng: torch.Generator) -> None:
    call, plain = Call(contract, rng), Call(contract, rng, backend="reference")
    refusal = pytest.raises(NotImplementedError, match=f"{contract.operator.name} has no forward-mode")
    tangent = torch.randn(call.first.shape, generator=rng)
    with refusal:
        torch.func.jvp(call.of_first(call.tensors), (call.first,), (tangent,))
    at = call.names.index(contract.differentiable[0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(call.first, tangent)
        with refusal:
            call.of_first(call.tensors)(dual)
        out = plain.of_first(call.tensors)(dual)
        found = forward_ad.unpack_dual(out).tangent
    leaf = call.first.double().requires_grad_()
    wide = [t.double() if t.is_floating_point() else t for t in call.tensors]
    cotangent = torch.randn(out.shape, generator=rng, dtype=torch.float64)
    result = plain(*(leaf if i == at else t for i, t in enumerate(wide)))
    (grad,) = torch.autograd.grad(result, leaf, cotangent)
    # <cotangent, J tangent> = <J^T cotangent, tangent>
    torch.testing.assert_close(
        (found.double() * cotangent).sum(), (grad * tangent.double()).sum(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("contract", [p for p in TYPICAL if p.values[0].operator.name in CONSTANT])
def test_constants_have_no_tangent(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    first, others = call.tensors[0], call.tensors[1:]
    out, tangent = torch.func.jvp(lambda x: call(x, *others), (first,), (torch.ones_like(first),))
    equal(out, call(*call.tensors))
    assert not tangent.any()
    assert not call(first.requires_grad_(), *others).requires_grad


@pytest.mark.parametrize("contract", TYPICAL)
def test_tensors_without_memory_of_their_own(contract: Contract, rng: torch.Generator) -> None:
    """Negative bits, zero tensors and storage that was freed."""
    call = Call(contract, rng)
    for i, tensor in enumerate(call.tensors):
        others = list(call.tensors)
        if tensor.is_floating_point():
            others[i] = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
            assert others[i].is_neg()
            equal(call(*others), call(*call.tensors))
        zeros = torch.zeros_like(tensor)
        others[i] = zeros
        expected = call(*others)
        others[i] = torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)
        equal(call(*others), expected)
        others[i] = tensor.clone()
        others[i].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="expected a tensor with memory"):
            call(*others)


@pytest.mark.parametrize("contract", TYPICAL)
def test_meta_tensors(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    found, expected = call(*(tensor.to("meta") for tensor in call.tensors)), call(*call.tensors)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("contract", DIFFERENTIABLE)
def test_forward_over_vmap_takes_the_reference(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng, backend="reference")
    tangents = torch.randn(2, *call.first.shape, generator=rng)

    def push(tangent: Tensor) -> Tensor:
        return torch.func.jvp(call.of_first(call.tensors), (call.first,), (tangent,))[1]

    close(torch.vmap(push)(tangents), torch.stack([push(tangent) for tangent in tangents]))


@pytest.mark.parametrize("contract", TYPICAL)
def test_functionalize(contract: Contract, rng: torch.Generator) -> None:
    call = Call(contract, rng)
    equal(torch.func.functionalize(call)(*call.tensors), call(*call.tensors))
