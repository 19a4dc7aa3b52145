"""What is timed on a GPU: each of our backends, and what people use in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import AttentionInputs
from benchmarks.gpu.cases import FUSED, PLAIN, Job
from benchmarks.peers.attention import grid_sample_path
from benchmarks.peers.peer import import_peer
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused
from detr_fast.ops.ms_deform_attn import OPERATOR

Function = Callable[..., Tensor]

CUDA, TRITON = "cuda", "triton"
DETERMINISTIC = ", deterministic"
CLASSIC = "torch-ms-deform-attn"
GRID_SAMPLE = "grid_sample"
EAGER = " + eager softmax, locations"
COMPILED = ", torch.compile"


@dataclass(frozen=True)
class Contender:
    """bind: (inputs) -> the function of the form's ARGUMENTS that is timed, everything constant prepared.

    missing: why it cannot run here, or None. forward: whether its forward pass is timed too.
    repeatable: two backward passes must agree bit for bit.
    """

    name: str
    bind: Callable[[AttentionInputs], Function]
    missing: str | None = None
    forward: bool = True
    repeatable: bool = False


def contenders(job: Job, device: torch.device) -> list[Contender]:
    """Ours first, then the peers. Backends that cannot run on `device` come with the reason."""
    if job.compiled:
        return [Contender(GRID_SAMPLE + COMPILED, partial(_compiled, _grid_sample))]
    ours = []
    for name, reason in OPERATOR.explain(device, job.precision.value).items():
        if name != "reference" and (name in (CUDA, TRITON) or reason is None):
            ours.append(Contender(name, partial(_ours, job.form, name, False), reason))
            if job.form == PLAIN and name in (CUDA, TRITON):
                again = partial(_ours, job.form, name, True)
                ours.append(Contender(name + DETERMINISTIC, again, reason, forward=False, repeatable=True))
    module, missing = import_peer("torch_ms_deform_attn")
    if module is not None and device.type == "cuda" and not getattr(_native(module), "with_cuda", True):
        missing = "built without CUDA"
    classic = partial(_classic, module)
    if job.form == PLAIN:
        return [*ours, Contender(CLASSIC, classic, missing), Contender(GRID_SAMPLE, _grid_sample)]
    return [
        *ours,
        Contender(CLASSIC + EAGER, partial(_eager, classic), missing),
        Contender(GRID_SAMPLE + EAGER, partial(_eager, _grid_sample)),
    ]


def _ours(form: str, backend: str, deterministic: bool, inputs: AttentionInputs) -> Function:
    options: dict[str, Any] = {"backend": backend, **({"deterministic": True} if deterministic else {})}
    shapes, reference = inputs.shapes, inputs.reference_points
    if form == FUSED:
        return lambda value, offsets, logits: ms_deform_attn_fused(
            value, shapes, reference, offsets, logits, **options
        )
    return lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights, **options)


def _classic(module: Any, inputs: AttentionInputs) -> Function:
    """The 2020 kernel; it computes in float32 whatever comes, as it does under autocast."""
    device = inputs.value.device
    shapes = torch.tensor(inputs.shapes, device=device)
    starts = torch.tensor([0, *(h * w for h, w in inputs.shapes[:-1])], device=device).cumsum(0)

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = module.ms_deform_attn(value.float(), shapes, starts, locations.float(), weights.float())
        return out.to(value.dtype)

    return call


def _grid_sample(inputs: AttentionInputs) -> Function:
    """In float32, to which autocast promotes `grid_sample` beside float32 locations."""

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        out = grid_sample_path(inputs, value.float(), locations.float(), weights.float())
        return out.to(value.dtype)

    return call


def _eager(plain: Callable[[AttentionInputs], Function], inputs: AttentionInputs) -> Function:
    """A plain form behind what the models do before it: locations from offsets, softmax of the logits."""
    function, reference = plain(inputs), inputs.reference_points[:, :, None, :, None]
    extent = torch.tensor([(w, h) for h, w in inputs.shapes], dtype=torch.float32, device=reference.device)

    def call(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1, dtype=torch.float32).view_as(logits)
        return function(value, reference + offsets / extent[:, None], weights)

    return call


def _compiled(plain: Callable[[AttentionInputs], Function], inputs: AttentionInputs) -> Function:
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # a backward pass is repeated to be timed
    return torch.compile(plain(inputs), dynamic=False)


def _native(module: Any) -> Any:
    """The compiled part of torch-ms-deform-attn."""
    return import_peer(f"{module.__name__}._C")[0]
