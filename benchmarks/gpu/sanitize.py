"""Every GPU kernel of attention once, on small ragged cases: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/gpu/sanitize.py

Each backend that serves the device runs both forms and passes, with and without the fixed order of sums, the
compiled ones in every dtype and size, and is compared with the float64 reference on the CPU. Exit code 1: a
result was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from torch import Tensor

from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused
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
        error = ((a.double() - e).abs().max() / e.abs().max().clamp(min=1e-9)).item()
        worst = max(worst, error) if error == error else float("inf")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", action="append", help="only these; default: all that serve the device")
    arguments = parser.parse_args()
    wrong = ran = 0
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
