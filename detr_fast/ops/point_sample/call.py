"""Sampling and its adjoint, spreading. Sampling is linear in the maps, so each is the other's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.point_sample import cpu, cuda, reference, triton
from detr_fast.ops.point_sample.arguments import Rows, result_dtype
from detr_fast.ops.register import Registered

OPERATOR = Operator(
    "point_sample",
    Backend("cuda", cuda.BACKEND, on_cuda(also=(torch.bool, torch.uint8))),
    Backend("triton", triton, on_triton(also=(torch.bool, torch.uint8))),
    Backend("cpu", cpu, on_cpu(also=(torch.bool, torch.uint8))),
    Backend("reference", reference),
)


def _fake_samples(
    maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None, _: Any
) -> Tensor:
    count = Rows(points, map_index, point_index).count(maps.shape)
    shape = (count, maps.shape[1], points.shape[1])
    return maps.new_empty(shape, dtype=result_dtype(maps.dtype))


def _spread(
    grad_outputs: Any, tensors: Sequence[Any], rest: Sequence[Any], needs: Sequence[bool], backend: str | None
) -> tuple[Tensor | None, ...]:
    shape, *others = tensors
    return SPREAD((grad_outputs[0], *others, shape, *rest), backend), None, None, None


def _sample(
    grad_outputs: Any, tensors: Sequence[Any], rest: Sequence[Any], needs: Sequence[bool], backend: str | None
) -> tuple[Tensor | None, ...]:
    _, *others = tensors
    return SAMPLE((grad_outputs[0], *others, rest[-1]), backend), None, None, None


def _backward(implementation: Any, call: tuple[Any, ...]) -> Tensor:
    grad_out, *rows, shape, deterministic = call
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return implementation.backward(grad_out, torch.Size(shape), Rows(*rows), deterministic)


SAMPLE = Registered(
    OPERATOR,
    "(Tensor maps, Tensor points, Tensor? map_index, Tensor? point_index, bool? deterministic) -> Tensor",
    _fake_samples,
    lambda implementation, call: implementation.forward(call[0], Rows(*call[1:4])),
    gradient=_spread,
    saved=(False, True, True, True),
    by_autograd=False,
)
SPREAD = Registered(
    OPERATOR,
    "(Tensor grad_out, Tensor points, Tensor? map_index, Tensor? point_index, SymInt[] shape, "
    "bool? deterministic) -> Tensor",
    lambda grad_out, *arguments: grad_out.new_empty(arguments[3]),
    _backward,
    name="point_sample_backward",
    gradient=_sample,
    saved=(False, True, True, True),
    by_autograd=False,
)
