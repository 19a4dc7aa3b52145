"""Every backend of a device on the operators' contract cases, one call each, for compute-sanitizer.

Exit code 1: a result was wrong, or nothing ran.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import tests.ops.cases
from detr_fast.ops.operator import ORDER
from tests.ops.contract import Contract, Inputs, convert, to_float64

SEED = 1


def errors(device: str, largest: int, only: Sequence[str] | None = None) -> Iterator[tuple[str, float]]:
    """Name and error over tolerance of each case, in each dtype, of each backend that serves the device.

    largest: elements of an input, beyond which a case is left to the tests.
    """
    modules = [f"tests.ops.cases.{module.name}" for module in pkgutil.iter_modules(tests.ops.cases.__path__)]
    for contract in (c for module in modules for c in importlib.import_module(module).CONTRACTS):
        for dtype in contract.dtypes:
            reasons = contract.operator.explain(torch.device(device), dtype)
            for backend in ORDER if only is None else only:
                if backend == "reference" or reasons[backend] is not None:
                    continue
                # Triton compiles for every size and type, for a second each
                cases = contract.cases if backend != "triton" else contract.cases[: dtype == torch.float32]
                for case in cases:
                    name = f"{contract.name} {backend} {str(dtype)[6:]} {case.name}"
                    inputs = case.inputs(torch.Generator().manual_seed(SEED))
                    if max(x.numel() for x in inputs.values() if isinstance(x, Tensor)) <= largest:
                        yield name, _error(contract, convert(inputs, contract, dtype, device), dtype, backend)


def _error(contract: Contract, inputs: Inputs, dtype: torch.dtype, backend: str) -> float:
    """Of output and gradients over their tolerances, infinite for another status."""
    wide = to_float64(inputs)
    found, expected = (_call(contract, inputs, backend), _call(contract, wide, "reference"))
    if contract.check is not None:
        try:
            contract.check(wide, found[0], expected[0])
        except AssertionError:
            return float("inf")
        return 0.0
    tolerance = contract.dtypes[dtype]
    limits = [tolerance.forward, *[tolerance.backward] * (len(found) - 1)]
    return max(_relative(a, e) / limit for a, e, limit in zip(found, expected, limits, strict=True))


def _call(contract: Contract, inputs: Inputs, backend: str) -> list[Tensor]:
    """Output and, where there are any, gradients."""
    names = contract.differentiable
    leaves = {k: v.detach().clone().requires_grad_() if k in names else v for k, v in inputs.items()}
    output = contract.function(**leaves, backend=backend)
    if not names or not output.numel():
        return [output]
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    gradients = torch.autograd.grad(
        output, [leaves[name] for name in names], grad_output.to(output.device, output.dtype)
    )
    return [output.detach(), *gradients]


def _relative(found: Tensor, expected: Tensor) -> float:
    """To the largest entry; infinite for NaN."""
    if not expected.numel():
        return 0.0
    error = float((found.cpu().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    return error if error == error else float("inf")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sanitize", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", action="append", help="only these; default: all that serve the device")
    parser.add_argument("--largest", type=int, default=1 << 16, help="elements of an input")
    options = parser.parse_args(arguments)
    wrong = ran = 0
    for name, error in errors(options.device, options.largest, options.backend):
        ran, wrong = ran + 1, wrong + (not error <= 1)
        print(f"{'right' if error <= 1 else 'WRONG'} {error:.1e} {name}", flush=True)
    print(f"{ran} calls, {wrong} wrong")
    return 1 if wrong or not ran else 0
