"""Compiles the Triton kernels of real calls for one architecture, without a GPU, and tells what came out.

    python -m tests.ops.triton_cubins 90

The backends run on tensors of the CPU with a recorder in place of the launch, so what is compiled is what
a call would launch: its tile, its types, its constants. One line of JSON is printed for each call.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from detr_fast.ops import triton_launch, triton_match_cost
from detr_fast.ops.box_loss import triton as box_loss
from detr_fast.ops.box_match_cost import triton as match_cost
from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.class_loss import triton as class_loss
from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.linear_assignment import triton as assignment
from detr_fast.ops.mask_match_cost import triton as mask_match
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.ms_deform_attn import triton as attention
from detr_fast.ops.point_sample import triton as points
from detr_fast.ops.point_sample.arguments import Rows
from tests.ops.cases.ms_deform_attn import packed

ENCODER = ((100, 134), (50, 67), (25, 34), (13, 17))
EVERYTHING = (True, True, True, True)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def attend(
    dtype: torch.dtype,
    *,
    coordinates: torch.dtype = F32,
    dims: int = 0,
    levels: tuple[tuple[int, int], ...] = ENCODER,
    queries: int = 17821,
    heads: int = 8,
    channels: int = 32,
    points: int | tuple[int, ...] = 4,
    needs: tuple[bool, ...] = EVERYTHING,
    deterministic: bool = False,
) -> None:
    """Forward and backward of multi-scale deformable attention; a deterministic one's grad_value alone."""
    pixels = sum(h * w for h, w in levels)
    value = torch.empty(1, pixels, heads, channels, dtype=dtype)
    ragged = None if isinstance(points, int) else points
    samples = (len(levels), points) if ragged is None else (sum(ragged),)
    given = torch.empty(1, queries, heads, *samples, 2, dtype=coordinates)
    weights = torch.empty(given.shape[:-1], dtype=coordinates)
    references = torch.empty(1, queries, len(levels), dims, dtype=F32) if dims else None
    grad_out = torch.empty(1, queries, heads * channels, dtype=dtype)
    call = packed(value, levels, given, weights, references, ragged, deterministic=deterministic)
    if not deterministic:
        attention.forward(call)
    attention.backward(grad_out, call, needs)


def match(class_cost: str, gamma: float, dtype: torch.dtype) -> None:
    sizes = [20] * 16
    logits, boxes = torch.empty(6, 16, 300, 91, dtype=dtype), torch.empty(6, 16, 300, 4, dtype=dtype)
    labels, target_boxes = torch.zeros(320, dtype=torch.int64), torch.empty(320, 4)
    call = BoxCosts(logits, boxes, labels, target_boxes, sizes, class_cost, 2.0, 5.0, 2.0, 0.25, gamma)
    match_cost.forward(call)


def match_masks(mask_cost: str, gamma: float, dtype: torch.dtype, values: torch.dtype, targets: int) -> None:
    logits, masks = torch.empty(10, 2, 100, 134, dtype=dtype), torch.empty(10, 2, 100, 12544, dtype=dtype)
    labels = torch.zeros(2 * targets, dtype=torch.int64)
    of_layers = () if values == torch.uint8 else (10,)
    target_values = torch.empty(*of_layers, 2 * targets, 12544, dtype=values)
    packed = (logits, masks, labels, target_values, [targets] * 2)
    mask_match.forward(MaskCosts(*packed, mask_cost, 2.0, 5.0, 5.0, 0.25, gamma))


def class_losses(
    kind: str, gamma: float, dtype: torch.dtype, classes: int = 92, *, weighted: bool = False
) -> None:
    logits, labels = torch.empty(6, 16, 300, classes, dtype=dtype), torch.zeros(320, dtype=torch.int64)
    weights = torch.empty(6, 320, 2) if weighted else None
    call = ClassLoss(logits, labels, labels.expand(6, -1), weights, [20] * 16, kind, 0.1, 0.25, gamma)
    class_loss.forward(call)
    class_loss.backward(torch.empty(6), call)


def box_losses(dtype: torch.dtype) -> None:
    query = torch.zeros(6, 320, dtype=torch.int64)
    inputs = (torch.empty(6, 16, 300, 4, dtype=dtype), torch.empty(320, 4), query, [20] * 16)
    box_loss.forward(*inputs)
    box_loss.backward(torch.empty(2, 6), *inputs)


def assign(dtype: torch.dtype, sizes: tuple[int, ...], queries: int) -> None:
    assignment.solve(torch.empty(1, sum(sizes), queries, dtype=dtype), sizes, check=True)


def sample(maps: tuple[int, ...], dtype: torch.dtype, *, rows: int | None = None) -> None:
    """Forward, and backward where there is one, of own points; `rows` of chosen maps and shared points."""
    index = None if rows is None else torch.zeros(rows, dtype=torch.int64)
    values, located = torch.empty(maps, dtype=dtype), torch.empty(maps[0], 12544, 2)
    out = points.forward(values, Rows(located, index, index))
    if dtype.is_floating_point:
        points.backward(out, values.shape, Rows(located, index, index))


CALLS: dict[str, Callable[[], None]] = {
    "ms_deform_attn-encoder_float32": partial(attend, F32),
    "ms_deform_attn-encoder_bfloat16": partial(attend, BF16),
    "ms_deform_attn_fused-encoder_float32": partial(attend, F32, dims=2),
    "ms_deform_attn_fused-encoder_autocast": partial(attend, BF16, coordinates=BF16, dims=2),
    "ms_deform_attn_fused-decoder_float16": partial(attend, F16, dims=4, queries=300),
    "ms_deform_attn_fused-rf_detr": partial(
        attend, BF16, dims=4, levels=((40, 40),), queries=300, heads=16, channels=16, points=2
    ),
    "ms_deform_attn-channels_20": partial(attend, F32, channels=20, points=3, queries=300),
    "ms_deform_attn-channels_64": partial(attend, BF16, channels=64),
    "ms_deform_attn_fused-nine_levels": partial(attend, F32, dims=2, levels=((4, 4),) * 9, points=1),
    "ms_deform_attn_fused-ragged": partial(
        attend, F32, dims=4, levels=ENCODER[1:], queries=300, points=(3, 6, 3)
    ),
    "ms_deform_attn_fused-ragged_deterministic": partial(
        attend,
        BF16,
        dims=2,
        levels=((4, 4),) * 9,
        points=(1, 0, 3) * 3,
        deterministic=True,
        needs=(True, False, False, False),
    ),
    "ms_deform_attn-only_value": partial(attend, F32, needs=(True, False, False, False)),
    "ms_deform_attn-frozen_value": partial(attend, F32, needs=(False, True, True, False)),
    "ms_deform_attn_fused-deterministic": partial(
        attend, BF16, dims=2, queries=300, needs=(True, False, False, False), deterministic=True
    ),
    "box_match_cost-softmax": partial(match, "softmax", 2.0, F32),
    "box_match_cost-focal": partial(match, "focal", 2.0, BF16),
    "box_match_cost-focal_gamma": partial(match, "focal", 3.0, F32),
    "mask_match_cost-bce": partial(match_masks, "bce", 2.0, F32, F32, 12),
    "mask_match_cost-bce_half": partial(match_masks, "bce", 2.0, F16, F16, 30),
    "mask_match_cost-bce_most_targets": partial(match_masks, "bce", 2.0, F32, F32, 100),
    "mask_match_cost-focal": partial(match_masks, "focal", 2.0, BF16, torch.uint8, 12),
    "mask_match_cost-focal_gamma": partial(match_masks, "focal", 1.5, F32, torch.uint8, 100),
    "class_loss-softmax": partial(class_losses, "softmax", 2.0, F32),
    "class_loss-many_classes": partial(class_losses, "softmax", 2.0, BF16, 1204),
    "class_loss-focal": partial(class_losses, "focal", 2.0, BF16),
    "class_loss-focal_gamma": partial(class_losses, "focal", 1.5, F32),
    "class_loss-focal_weighted": partial(class_losses, "focal", 2.0, F32, weighted=True),
    "class_loss-varifocal": partial(class_losses, "varifocal", 1.5, BF16, weighted=True),
    "box_loss-float32": partial(box_losses, F32),
    "box_loss-bfloat16": partial(box_losses, BF16),
    "point_sample-float32": partial(sample, (4, 100, 256, 256), F32),
    "point_sample-bfloat16": partial(sample, (40, 1, 256, 256), BF16, rows=9),
    "point_sample-masks": partial(sample, (20, 1, 1024, 1024), torch.bool, rows=9),
    "linear_assignment-300x60": partial(assign, F32, (60,) * 16, 300),
    "linear_assignment-2048x2048": partial(assign, torch.float64, (2048,), 2048),
}

_TYPES = {
    torch.float64: "*fp64",
    F32: "*fp32",
    BF16: "*bf16",
    F16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def recorded(call: Callable[[], None]) -> list[tuple[Any, int, tuple[Any, ...]]]:
    """The launches of a call: kernel, warps, arguments."""
    launches = []

    def launch(kernel: Any, programs: int, num_warps: int, arguments: tuple[Any, ...]) -> None:
        launches.append((kernel, num_warps, arguments))

    with ExitStack() as stack:
        for module in (
            triton_launch,
            attention,
            match_cost,
            triton_match_cost,
            mask_match,
            assignment,
            class_loss,
            box_loss,
            points,
        ):
            stack.enter_context(patch.object(module, "launch", launch))
        call()
    return launches


def compiled(kernel: Any, num_warps: int, arguments: tuple[Any, ...], architecture: int) -> Any:
    """The kernel as the launcher would specialise it: pointers aligned to 16 bytes, numbers as they come."""
    triton = importlib.import_module("triton")
    signature, constants, attributes = {}, {}, {}
    for i, (parameter, argument) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = argument
        elif isinstance(argument, torch.Tensor):
            signature[parameter.name] = _TYPES[argument.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(argument, float):
            signature[parameter.name] = "fp32"
        else:
            assert parameter.do_not_specialize, f"{parameter.name} would compile anew for some of its values"
            signature[parameter.name] = "i64" if abs(argument) >= 2**31 else "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack, local and shared memory, as cuobjdump reads them."""
    nvidia = importlib.import_module("triton.backends.nvidia")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
        report = subprocess.run(
            [str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {key.lower(): int(count) for key, count in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", report)}


def kernels(call: Callable[[], None], architecture: int) -> Iterator[dict[str, Any]]:
    for kernel, num_warps, arguments in recorded(call):
        built = compiled(kernel, num_warps, arguments, architecture)
        ptx = built.asm["ptx"]
        yield {
            "kernel": kernel.__name__,
            "wide_loads": len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
            "wide_sums": len(re.findall(r"(?:atom|red)\.global[\w.]*\.v4\.f32", ptx)),
            "barriers": ptx.count("bar.sync"),
            **resources(built.asm["cubin"]),
        }


def main(architecture: int) -> None:
    for name, call in CALLS.items():
        try:
            print(json.dumps({"call": name, "kernels": list(kernels(call, architecture))}), flush=True)
        except Exception:  # noqa: PERF203
            print(json.dumps({"call": name, "error": traceback.format_exc()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
