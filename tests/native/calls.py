"""A call of every function of the extension, by the names of its arguments, with extents of one's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast.extension import extension
from tests.simt.build import simt_module

EXTENTS = {
    "L": 2,
    "B": 3,
    "Q": 5,
    "T": 2,  # targets of the first two images; the others have none
    "K": 7,
    "X": 11,
    "H": 2,
    "D": 20,
    "N": 2,
    "P": 3,
    "h": 4,
    "w": 3,
    "M": 6,
    "C": 2,
}

POISON = 77


@dataclass
class Call:
    function: str
    arguments: dict[str, Any]
    outputs: tuple[str, ...]  # of arguments, filled with POISON before the call
    module: Callable[[], ModuleType] = extension

    def run(self, arguments: list[Any] | None = None) -> Any:
        given = list(self.arguments.values()) if arguments is None else arguments
        return getattr(self.module(), self.function)(*given)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}


def calls(**extents: int) -> dict[str, Call]:
    """Every function by its name; extents other than those of EXTENTS by their letter."""
    e = {**EXTENTS, **extents}
    layers, images, queries, classes = e["L"], e["B"], e["Q"], e["K"]
    sizes = [e["T"]] * min(images, 2) + [0] * (images - 2)
    targets = sum(sizes)
    labels = torch.arange(targets) % max(classes - 1, 1)
    query = (torch.arange(targets) % max(queries, 1)).expand(layers, targets).contiguous()
    if queries == 0:
        query.fill_(-1)
    out = _Poisoned()
    packed = {"sizes": sizes, "layers": layers, "queries": queries}
    logits = torch.randn(layers, images, queries, classes)
    boxes, target_boxes = torch.rand(layers, images, queries, 4), torch.rand(targets, 4)
    losses = {"boxes": boxes, "target_boxes": target_boxes, "query": query}
    classify = {"classes": classes, "logits": logits, "labels": labels, "query": query}
    classify |= {"target_weights": torch.rand(layers, targets, 2), "focal": True, "constant": False}
    classify |= {"eos_coef": 0.1, "alpha": 0.25, "gamma": 2.0}
    box_costs = {"classes": classes, "logits": logits, "boxes": boxes, "target_labels": labels}
    box_costs |= {"target_boxes": target_boxes, "focal": True, "w_class": 1.0, "w_l1": 5.0, "w_giou": 2.0}
    box_costs |= {"alpha": 0.25, "gamma": 2.0, "costs": out(layers, targets, queries)}
    mask_costs = {"classes": classes, "points": e["X"], "target_values_of_layers": False, "logits": logits}
    mask_costs |= {"mask_values": torch.randn(layers, images, queries, e["X"]), "target_labels": labels}
    mask_costs |= {"target_values": torch.rand(targets, e["X"]), "focal": False, "w_class": 2.0}
    mask_costs |= {"w_mask": 5.0, "w_dice": 5.0, "alpha": 0.25, "gamma": 2.0}
    mask_costs |= {"costs": out(layers, targets, queries)}
    costs = torch.rand(layers, targets, queries)
    problems = {
        "sizes": sizes,
        "costs": costs,
        "query": out(layers, targets, dtype=torch.int64),
        "status": _status(layers, images),
    }
    on_gpu, threads = {"device": 0, "stream": 0}, {"threads": 2}
    gradients = {"grad_loss": torch.rand(layers), "grad_logits": out(*logits.shape)}
    functions = [
        Call("box_loss_cpu_fwd", packed | losses | {"losses": out(2, layers)}, ("losses",)),
        Call(
            "box_loss_cpu_bwd",
            packed | losses | {"grad_losses": torch.rand(2, layers), "grad_boxes": torch.zeros_like(boxes)},
            (),
        ),
        Call("class_loss_cpu_fwd", packed | classify | threads | {"loss": out(layers)}, ("loss",)),
        Call(
            "class_loss_cpu_bwd",
            packed | classify | threads | gradients,
            ("grad_logits",),
        ),
        Call("box_match_cost_cpu", packed | box_costs | {"threads": 2}, ("costs",)),
        Call("mask_match_cost_cpu", packed | mask_costs | {"threads": 2}, ("costs",)),
        Call("linear_assignment_cpu", problems | {"threads": 2}, ("query", "status")),
        *_point_sample(e, out),
    ]
    sums = simt_module().class_loss_cuda_sums(images, queries)
    functions += [
        Call(
            "class_loss_cuda_fwd",
            packed | classify | {"sums": out(layers, sums)} | on_gpu,
            ("sums",),
            simt_module,
        ),
        Call("class_loss_cuda_bwd", packed | classify | gradients | on_gpu, ("grad_logits",), simt_module),
    ]
    by_boxes = {**packed, **losses}
    functions += [
        Call("box_loss_cuda_fwd", by_boxes | {"losses": out(2, layers)} | on_gpu, ("losses",), simt_module),
        Call(
            "box_loss_cuda_bwd",
            by_boxes | {"grad_losses": torch.rand(2, layers), "grad_boxes": out(*boxes.shape)} | on_gpu,
            ("grad_boxes",),
            simt_module,
        ),
    ]
    flags = simt_module().box_match_cost_cuda_flags(layers, images, queries)
    functions.append(
        Call(
            "box_match_cost_cuda",
            packed | box_costs | {"non_finite": out(flags, dtype=torch.int32)} | on_gpu,
            ("costs",),
            simt_module,
        )
    )
    functions.append(
        Call(
            "mask_match_cost_cuda",
            packed | mask_costs | {"non_finite": out(flags, dtype=torch.int32)} | on_gpu,
            ("costs",),
            simt_module,
        )
    )
    bytes_ = simt_module().linear_assignment_cuda_workspace(sizes, layers, queries, False, 2**15)
    workspace = {"by_auction": False, "shared_bytes": 2**15, "workspace": out(bytes_, dtype=torch.uint8)}
    functions.append(
        Call("linear_assignment_cuda", problems | workspace | on_gpu, ("query", "status"), simt_module)
    )
    return {call.function: call for call in [*functions, *_ms_deform_attn(e, out)]}


def _status(layers: int, images: int) -> Tensor:
    return torch.full((layers, images), POISON, dtype=torch.int32)


class _Poisoned:
    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, POISON, dtype=dtype)


def _point_sample(e: dict[str, int], out: _Poisoned) -> list[Call]:
    maps, channels, height, width, points = e["M"], e["C"], e["h"], e["w"], e["P"]
    chosen = torch.arange(4) % maps if maps else torch.empty(0, dtype=torch.int64)
    rows, sets = len(chosen), 2
    tensor = torch.randn(maps, channels, height, width)
    first = {"M": maps, "C": channels, "h": height, "w": width, "sets": sets, "P": points, "rows": rows}
    first |= {"points": torch.rand(sets, points, 2), "map_index": chosen, "point_index": chosen % 2}
    samples, on_gpu = (rows, channels, points), {"device": 0, "stream": 0}
    forward = {"maps": tensor, "out": out(*samples)}
    grad_out, zeros = torch.rand(samples), torch.zeros_like(tensor)
    return [
        Call("point_sample_cpu_fwd", {**first, "threads": 2, **forward}, ("out",)),
        Call(
            "uncertain_points_cpu",
            {
                **first,
                "C": 1,
                "sets": rows,
                "points": torch.rand(rows, points, 2),
                "point_index": None,
                "threads": 2,
                "maps": torch.randn(maps, 1, height, width),
                "chosen": points // 2,
                "uniform": 3,
                "draws": True,
                "seed": 1,
                "out": out(rows, points // 2 + 3, 2),
            },
            ("out",),
        ),
        Call("point_sample_cuda_fwd", {**first, **forward, **on_gpu}, ("out",), simt_module),
        Call(
            "point_sample_cpu_bwd",
            {**first, "threads": 2, "grad_out": grad_out, "grad_maps": out(*tensor.shape)},
            ("grad_maps",),
        ),
        Call(
            "point_sample_cuda_bwd",
            {**first, "grad_out": grad_out, "grad_maps": zeros, **on_gpu},
            (),
            simt_module,
        ),
    ]


def _ms_deform_attn(e: dict[str, int], out: _Poisoned) -> list[Call]:
    images, queries, heads, channels, points = e["B"], e["Q"], e["H"], e["D"], e["P"]
    sides = [e["h"], e["w"]] * e["N"]
    pixels = e["h"] * e["w"] * e["N"]
    shape = (images, queries, heads, e["N"] * points)
    value = torch.randn(images, pixels, heads, channels)
    samples = {"coordinates": torch.rand(*shape, 2), "weights": torch.rand(shape)}
    references = torch.rand(images, queries, e["N"], 4)
    parts = out(images, queries, heads, e["N"], 4)
    first = {"sides": sides, "points": [points] * e["N"], "value": value, **samples, "references": references}
    rows = torch.rand(images, queries, heads * channels)
    gradients = {f"grad_{name}": out(*tensor.shape) for name, tensor in samples.items()}
    cpu, gpu = first | {"threads": 2}, first | {"device": 0, "stream": 0}
    by_value = {"grad_value": out(*value.shape)}
    names = (*by_value, *gradients, "grad_references")
    simt = simt_module()
    cells = images * heads * simt.ms_deform_attn_cuda_cells(sides)
    count = samples["weights"].numel()
    binned = {"cells": out(count, dtype=torch.int32), "records": torch.rand(count, 4)}
    gather = {"grad_out": rows, "cell_starts": torch.zeros(cells + 1, dtype=torch.int32)}
    gather |= {"order": torch.arange(count), "records": torch.rand(count, 4), **by_value}
    return [
        Call("ms_deform_attn_cpu_fwd", cpu | {"out": out(*rows.shape)}, ("out",)),
        Call(
            "ms_deform_attn_cpu_bwd",
            cpu
            | {"grad_out": rows, **by_value, **gradients, "grad_references": out(*references.shape)}
            | {"reference_parts": parts},
            names,
        ),
        Call("ms_deform_attn_cuda_fwd", gpu | {"out": out(*rows.shape)}, ("out",), simt_module),
        Call(
            "ms_deform_attn_cuda_bwd",
            gpu
            | {"grad_out": rows, "grad_value": torch.zeros_like(value), **gradients}
            | {"reference_parts": parts},
            (*gradients, "reference_parts"),
            simt_module,
        ),
        Call("ms_deform_attn_cuda_bin", gpu | binned, ("cells",), simt_module),
        Call("ms_deform_attn_cuda_gather", gpu | gather, ("grad_value",), simt_module),
    ]
