"""Every GPU kernel once, on small ragged cases: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu/sanitize.py

Attention: each backend that serves the device runs both forms and passes, with and without the fixed order of
sums, the compiled ones in every dtype and size, and is compared with the float64 reference on the CPU.
Matching: costs, statuses and total costs are compared with the reference's. Exit code 1: a result was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detr_fast.ops import box_match_cost, linear_assignment, ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.box_match_cost import OPERATOR as COST
from detr_fast.ops.linear_assignment import OPERATOR as ASSIGNMENT
from detr_fast.ops.ms_deform_attn import OPERATOR

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
Size = tuple[tuple[tuple[int, int], ...], int, int, int]  # levels, H, D, P
# rows of 16 bytes and more, odd channels, one pixel
SIZES: tuple[Size, ...] = (
    (((5, 7), (3, 2)), 2, 32, 4),
    (((4, 4),), 3, 16, 2),
    (((3, 5), (1, 1), (2, 2)), 1, 5, 3),
)
BATCH, QUERIES = 2, 9
COSTS = ((7, (3, 0, 5)), (33, (60, 1)), (1, (1,)))  # Q, T of each image
ASSIGNMENTS = (
    (1, (1,)),
    (7, (3, 0, 5)),
    (4, (9, 2)),
    (70, (40, 1)),
    (150, (140,)),
    (200, (300,)),
    (300, (200,)),
)
DIMS = (0, 2, 4)  # of the reference points; 0: the plain form


def leaves(
    levels: tuple[tuple[int, int], ...], heads: int, channels: int, points: int, dims: int
) -> list[Tensor]:
    """Value, coordinates, weights and reference points (where fused) on the CPU."""
    generator = torch.Generator().manual_seed(1)
    positions, shape = sum(h * w for h, w in levels), (BATCH, QUERIES, heads, len(levels), points)
    value = torch.randn(BATCH, positions, heads, channels, generator=generator)
    weights = torch.randn(shape, generator=generator)
    if not dims:
        return [value, 1.4 * torch.rand(*shape, 2, generator=generator) - 0.2, weights]
    references = torch.rand(BATCH, QUERIES, len(levels), dims, generator=generator)
    return [value, torch.randn(*shape, 2, generator=generator), weights, references]


def run(
    tensors: list[Tensor], levels: tuple[tuple[int, int], ...], backend: str, deterministic: bool
) -> list[Tensor]:
    """Output and gradients, on the CPU."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    if len(inputs) == 3:
        out = ms_deform_attn(inputs[0], levels, *inputs[1:], backend=backend, deterministic=deterministic)
    else:
        value, offsets, logits, references = inputs
        out = ms_deform_attn_fused(
            value, levels, references, offsets, logits, backend=backend, deterministic=deterministic
        )
    grad_output = torch.linspace(-1, 1, out.numel()).view(out.shape)
    gradients = torch.autograd.grad(out, inputs, grad_output.to(out.device, out.dtype))
    return [out.detach().cpu(), *(gradient.cpu() for gradient in gradients)]


def worst_error(
    device: str, backend: str, dtype: torch.dtype, dims: int, deterministic: bool, size: Size
) -> float:
    """Of the output and all gradients, relative to the largest entry of each reference."""
    levels, heads, channels, points = size
    cpu = leaves(levels, heads, channels, points, dims)
    cpu[0] = cpu[0].to(dtype)
    found = run([tensor.to(device) for tensor in cpu], levels, backend, deterministic)
    expected = run([tensor.double() for tensor in cpu], levels, "reference", False)
    worst = 0.0
    for a, e in zip(found, expected, strict=True):
        worst = max(worst, relative_error(a, e))
    return worst


def matching(device: str, only: list[str] | None) -> Iterator[tuple[str, float]]:
    """Name and error of each backend of the matcher's operators, in each of its cases."""
    for operator, cases in ((COST, cost_cases), (ASSIGNMENT, assignment_cases)):
        for backend, reason in operator.explain(torch.device(device), torch.float32).items():
            if reason is None and backend != "reference" and (only is None or backend in only):
                for name, error in cases(device, backend):
                    yield f"{operator.name} {backend} {name}", error


def cost_cases(device: str, backend: str) -> Iterator[tuple[str, float]]:
    """Both class terms in every dtype, then non-finite predictions; relative to the largest cost."""
    generator = torch.Generator().manual_seed(2)
    for (queries, sizes), class_cost, dtype in itertools.product(COSTS, ("softmax", "focal"), TOLERANCES):
        # Triton compiles for every type
        for poisoned in (False, True) if dtype == torch.float32 else (False,):
            if backend == "triton" and dtype == torch.float16:
                continue
            targets = sum(sizes)
            tensors = [
                torch.randn(2, len(sizes), queries, 5, generator=generator).to(dtype),
                (0.1 + 0.8 * torch.rand(2, len(sizes), queries, 4, generator=generator)).to(dtype),
                torch.randint(5, (targets,), generator=generator),
                0.1 + 0.8 * torch.rand(targets, 4, generator=generator),
            ]
            if poisoned:
                tensors[0][0, 0, -1] = torch.nan
                tensors[1][1, -1] = torch.inf
            found = box_match_cost(
                *(tensor.to(device) for tensor in tensors), sizes, class_cost=class_cost, backend=backend
            )
            wide = (tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)
            expected = box_match_cost(*wide, sizes, class_cost=class_cost, backend="reference")
            name = f"{class_cost} {str(dtype)[6:]} Q={queries} T={sizes}" + poisoned * " non-finite"
            yield name, relative_error(found.cpu(), expected)


def assignment_cases(device: str, backend: str) -> Iterator[tuple[str, float]]:
    """Total costs relative to the reference's; infinite where a status differs or a query is used twice."""
    for method in ("paths", "auction") if backend == "cuda" else ("paths",):
        for name, costs, sizes in problems():
            query, status = linear_assignment(
                costs.to(device), sizes, return_status=True, method=method, backend=backend
            )
            expected, expected_status = linear_assignment(
                costs, sizes, return_status=True, backend="reference"
            )
            error = relative_error(total(costs, query.cpu()), total(costs, expected))
            valid = all(
                of_image[of_image >= 0].unique().numel() == (of_image >= 0).sum() == (right >= 0).sum()
                for layer, right_layer in zip(query.cpu(), expected, strict=True)
                for of_image, right in zip(layer.split(sizes), right_layer.split(sizes), strict=True)
            )
            same = valid and torch.equal(status.cpu(), expected_status)
            yield f"{method} {name} Q={costs.shape[2]} T={sizes}", error if same else float("inf")


def problems() -> Iterator[tuple[str, Tensor, Sequence[int]]]:
    """Name, costs [L, sumT, Q] and targets of each image."""
    generator = torch.Generator().manual_seed(3)
    for queries, sizes in ASSIGNMENTS:
        yield "random", torch.rand(2, sum(sizes), queries, generator=generator), sizes
    yield "float64", torch.rand(2, 12, 9, generator=generator, dtype=torch.float64), (4, 0, 8)
    yield "ties", torch.randint(3, (2, 27, 20), generator=generator).float(), (20, 7)
    yield "all equal", torch.ones(1, 33, 40), (33,)
    early = torch.rand(1, 30, 1, generator=generator)
    yield "nearly equal rows", early + 1e-4 * torch.rand(1, 30, 64, generator=generator), (30,)
    costs = torch.rand(2, 6, 5, generator=generator)
    costs[0, :2, 1:] = torch.inf  # two targets that only one query may take
    yield "infeasible", costs, (3, 3)
    costs = torch.rand(2, 8, 9, generator=generator)
    costs[0, 0, :4], costs[0, 5], costs[1, 2, 3] = torch.inf, torch.nan, -torch.inf
    yield "forbidden, NaN", costs, (4, 4)


def total(costs: Tensor, query: Tensor) -> Tensor:
    """Cost of an assignment [L, sumT], -1 for targets that it left out; NaN and -inf count a thousand."""
    finite = costs.double().where(costs.isfinite(), 1e3)
    return finite.gather(2, query.clamp(min=0)[..., None])[..., 0].mul(query >= 0).sum(1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the largest entry; infinite for NaN."""
    if not expected.numel():
        return 0.0
    error = ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()
    return error if error == error else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", action="append", help="only these; default: all that serve the device")
    arguments = parser.parse_args()
    wrong = ran = 0
    for name, error in matching(arguments.device, arguments.backend):
        bad = not error <= 1e-4
        ran, wrong = ran + 1, wrong + bad
        print(f"{'WRONG' if bad else 'right'} {error:.1e} {name}", flush=True)
    for dtype in TOLERANCES:
        reasons = OPERATOR.explain(torch.device(arguments.device), dtype)
        for backend, dims, deterministic in itertools.product(reasons, DIMS, (False, True)):
            wanted = arguments.backend is None or backend in arguments.backend
            if reasons[backend] is not None or backend == "reference" or not wanted:
                continue
            # Triton compiles for every size and type, for a second each
            sizes = SIZES[:1] if backend == "triton" else SIZES
            if backend == "triton" and (dtype != torch.float32 or dims == 4):
                continue
            error = max(worst_error(arguments.device, backend, dtype, dims, deterministic, s) for s in sizes)
            bad = not error <= TOLERANCES[dtype]
            ran, wrong = ran + 1, wrong + bad
            name = f"{backend} {str(dtype)[6:]} dims={dims} deterministic={deterministic}"
            print(f"{'WRONG' if bad else 'right'} {error:.1e} {name}", flush=True)
    print(f"{ran} combinations ran, {wrong} wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
