"""Whole models at random weights: inference at the size of a COCO image.

Beside transformers', the same model with attention by `grid_sample`, and exported files in their runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contract import compare_norm
from benchmarks.peers import exported, transformers_models
from benchmarks.suite import FORWARD, OURS, Call, Contender, Suite, Work
from detr_fast.export.attention import standard_operators
from detr_fast.models import (
    DINO,
    DeformableDETR,
    DeformableDETRConfig,
    DINOConfig,
    Mask2Former,
    Mask2FormerConfig,
)
from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.ops import use_backend

OPERATOR, TRANSFORMERS, GRID_SAMPLE = "model", "transformers", "grid_sample"
DEFORMABLE_DETR_R50, MASK2FORMER_R50, TINY = "Deformable DETR R50", "Mask2Former R50", "Mask2Former tiny"
DINO_R50 = "DINO R50 4-scale"
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
# Largest error, of the Euclidean norm; float32 convolutions are TF32's on a GPU that has it.
TOLERANCES = {"fp32": 5e-3, "bf16": 1e-1}
CHOOSING = 4.0  # times as much where the best proposals are chosen: of near equals rounding picks one


def random_model(name: str) -> nn.Module:
    """For inference; sampling points spread over a few pixels, as trained ones do."""
    model: nn.Module
    if name == DEFORMABLE_DETR_R50:
        model = DeformableDETR(DeformableDETRConfig())
    elif name == MASK2FORMER_R50:
        model = Mask2Former(Mask2FormerConfig())
    elif name == DINO_R50:
        model = DINO(DINOConfig())
    else:
        model = Mask2Former(Mask2FormerConfig(num_classes=3, num_queries=5, backbone="conv_stem"))
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.05)
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=1)  # cases of one model follow each other
def _model(name: str, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        return random_model(name).to(device)


@dataclass(frozen=True)
class Inputs:
    """dtype: "fp32", or "bf16" for autocast to bfloat16. pixels: [B, 3, H, W]."""

    dtype: str
    model: nn.Module
    pixels: Tensor

    def call(self, forward: Forward) -> Call:
        """The last layer's classes, and its boxes or masks."""

        def call() -> dict[str, Tensor]:
            autocast = torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=self.dtype == "bf16")
            with torch.inference_mode(), autocast:
                classes, places = forward(self.pixels)
            return {"classes": classes, "boxes or masks": places}

        return call


@dataclass(frozen=True)
class Model:
    model: str
    images: int = 1
    dtype: str = "fp32"
    size: tuple[int, int] = (800, 1066)
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD,)

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.model} {height}x{width} B={self.images}"

    def inputs(self, generator: Generator) -> Inputs:
        pixels = torch.randn(self.images, 3, *self.size, generator=generator, device=generator.device)
        return Inputs(self.dtype, _model(self.model, generator.device), pixels)


def _ours(inputs: Inputs, pass_: str = FORWARD) -> Call:
    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = inputs.model(pixels)
        return found.logits[-1], found.boxes[-1] if hasattr(found, "boxes") else found.masks[-1]

    return inputs.call(forward)


def _by_grid_sample(inputs: Inputs, pass_: str) -> Call:
    call = _ours(inputs)

    def patched() -> dict[str, Tensor]:
        with standard_operators():
            return call()

    return patched


def _contenders(case: Model) -> list[Contender]:
    def theirs(inputs: Inputs, pass_: str) -> Call:
        return inputs.call(transformers_models.forward_of(inputs.model))

    why_not = "has no such model" if case.model in (TINY, DINO_R50) else transformers_models.why_not()
    return [
        Contender(OURS, _ours, ours=True),
        Contender(TRANSFORMERS, theirs, missing=why_not),
        Contender(GRID_SAMPLE, _by_grid_sample),
        *(_exported(case, runtime) for runtime in exported.SUFFIXES),
    ]


def _exported(case: Model, runtime: str) -> Contender:
    """The same weights in the file that `detr-fast export` writes."""

    def prepare(inputs: Inputs, pass_: str) -> Call:
        return inputs.call(exported.forward_of(inputs.model, runtime))

    missing = exported.why_not(runtime)
    if case.model == TINY or case.dtype != "fp32":
        missing = "exports take minutes: of real sizes in float32 alone"
    return Contender(
        runtime, prepare, quick=False, missing=missing, waits=True, compiles_s=exported.COMPILES_S
    )


@dataclass(frozen=True)
class Expected:
    tolerance: float
    values: dict[str, Tensor]


def _expected(inputs: Inputs, pass_: str) -> Expected:
    """In float32, with the operators' references."""
    with use_backend("reference"):
        tolerance = TOLERANCES[inputs.dtype] * (CHOOSING if isinstance(inputs.model, DINO) else 1)
        return Expected(tolerance, _ours(replace(inputs, dtype="fp32"))())


def _verify(expected: Expected, result: Mapping[str, Tensor]) -> None:
    for name, want in expected.values.items():
        compare_norm(name, want, result[name], expected.tolerance)


def _work(inputs: Inputs, pass_: str) -> Work:
    """Weights and pixels once; convolutions and products as torch counts them, without our operators."""
    with FlopCounterMode(display=False) as counter:
        _ours(replace(inputs, dtype="fp32"))()
    element = 2 if inputs.dtype == "bf16" else 4
    elements = inputs.pixels.numel() + sum(p.numel() for p in inputs.model.parameters())
    # in float32 torch convolves in TF32 on a GPU that has it
    unit = "bf16" if inputs.dtype == "bf16" else "tf32"
    return Work(element * elements, int(counter.get_total_flops()), unit)


def _goal(case: str, pass_: str, peer: str, threads: int) -> float | None:
    if peer == GRID_SAMPLE:
        return None
    return 3.0 if case.startswith(DEFORMABLE_DETR_R50) else 2.5


_MODELS = (DEFORMABLE_DETR_R50, MASK2FORMER_R50, DINO_R50)
SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        _work,
        cases=[Model(model) for model in _MODELS],
        gpu_cases=[
            Model(model, images, dtype, quick=(images, dtype) == (1, "bf16"))
            for model in _MODELS
            for images in (1, 2)
            for dtype in ("fp32", "bf16")
        ],
        tiny=[Model(TINY, 1, dtype, (32, 48)) for dtype in ("fp32", "bf16")],
        expected=_expected,
        verify=_verify,
        parts=["ms_deform_attn"],
        goal=_goal,
        by_default=False,
    )
]
