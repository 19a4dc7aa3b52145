"""Multi-scale deformable attention beside `grid_sample`, compiled indexing and the 2020 kernels."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from benchmarks.contract import ContractFailed, compare
from benchmarks.suite import (
    BACKWARD,
    CUDA,
    FORWARD,
    FORWARD_BACKWARD,
    OURS,
    TRITON,
    Contender,
    Goal,
    Row,
    Suite,
    Work,
    backends,
    by_reference,
    differentiable,
    drawn_from,
    extreme,
    import_peer,
    measured,
    ratio,
    size_of,
)
from detr_fast.ops import ms_deform_attn, ms_deform_attn_fused

OPERATOR = "ms_deform_attn"
Function = Callable[..., Tensor]
Shapes = tuple[tuple[int, int], ...]

PLAIN, FUSED = "plain", "fused"
# The arguments that each form differentiates.
ARGUMENTS = {PLAIN: ("value", "locations", "weights"), FUSED: ("value", "offsets", "logits")}
GRID_SAMPLE, INDEXING, CLASSIC = "grid_sample path", "indexing", "torch-ms-deform-attn"
DEFORMOPS, DEFORMOPS_CUDA = "deformops", "deformops, CUDA"
COMPILED, FUSED_FORM, DETERMINISTIC = ", torch.compile", ", fused form", ", deterministic"
COMPILE_S = 45.0
COCO_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
MASK2FORMER_LEVELS = ((32, 32), (64, 64), (128, 128))


class Precision(NamedTuple):
    """Types: of value and output; of the plain form's locations and weights; of the fused form's inputs."""

    name: str
    value: torch.dtype
    locations: torch.dtype
    offsets: torch.dtype


FP32 = Precision("fp32", torch.float32, torch.float32, torch.float32)
# What autocast leaves: linear layers give bfloat16, softmax and references float32.
BF16 = Precision("bf16", torch.bfloat16, torch.float32, torch.bfloat16)
ALL_BF16 = Precision("bf16 locations", torch.bfloat16, torch.bfloat16, torch.bfloat16)


@dataclass(frozen=True)
class Inputs:
    """One call.

    leaves: value [B, S, H, D], and of the plain form locations [B, Q, H, N, P, 2] and weights
    [B, Q, H, N, P], of the fused one offsets [B, Q, H, N, P, 2] in pixels and logits [B, Q, H, N, P].
    references: [B, Q, N, 2]. grad_output: [B, Q, H*D].
    checked: the queries whose result is compared with the reference (None: all).
    """

    form: str
    shapes: Shapes
    leaves: Mapping[str, Tensor]
    references: Tensor
    grad_output: Tensor
    checked: Tensor | None = None

    @property
    def locations(self) -> Tensor:
        """Of both forms, [B, Q, H, N, P, 2]."""
        _, places, _ = self.leaves.values()
        return places if self.form == PLAIN else _locations(self, places)

    def tensors(self) -> list[Tensor]:
        """All that a call reads."""
        return [*self.leaves.values(), self.grad_output, *([self.references] if self.form == FUSED else [])]

    def copy(self) -> Inputs:
        """The same in memory of its own."""
        leaves = {name: tensor.clone() for name, tensor in self.leaves.items()}
        return replace(
            self, leaves=leaves, references=self.references.clone(), grad_output=self.grad_output.clone()
        )

    def of_checked(self) -> Inputs:
        """The call of the checked queries alone."""
        if self.checked is None:
            return self
        value, *others = self.leaves
        leaves = {value: self.leaves[value], **{name: self.leaves[name][:, self.checked] for name in others}}
        references, grad_output = self.references[:, self.checked], self.grad_output[:, self.checked]
        return replace(self, leaves=leaves, references=references, grad_output=grad_output)


def _locations(inputs: Inputs, offsets: Tensor) -> Tensor:
    """References plus offsets in pixels."""
    extent = torch.tensor([(w, h) for h, w in inputs.shapes], dtype=offsets.dtype, device=offsets.device)
    return inputs.references[:, :, None, :, None] + offsets / extent[:, None]


@dataclass(frozen=True)
class Attention:
    """Sampling points lie about three pixels around reference points.

    The reference points are the pixel centres of all levels where queries is None (an encoder), else random.
    compiled: on a GPU only what torch.compile makes is timed.
    """

    name: str
    images: int
    queries: int | None
    shapes: Shapes
    heads: int = 8
    channels: int = 32
    points: int = 4
    form: str = PLAIN
    precision: Precision = FP32
    compiled: bool = False
    quick: bool = True
    passes: tuple[str, ...] = (FORWARD, FORWARD_BACKWARD)

    @property
    def dtype(self) -> str:
        return self.precision.name

    def inputs(self, generator: Generator) -> Inputs:
        B, H, N, P = self.images, self.heads, len(self.shapes), self.points
        S = sum(h * w for h, w in self.shapes)
        draw, types = drawn_from(generator), self.precision
        if self.queries is None:
            centres = [_pixel_centres(h, w, generator.device) for h, w in self.shapes]
            points = torch.cat(centres).expand(B, S, 2)
        else:
            points = torch.rand(B, self.queries, 2, **draw)
        Q = points.shape[1]
        references = points[:, :, None].expand(B, Q, N, 2).contiguous()
        extent = torch.tensor([(w, h) for h, w in self.shapes], dtype=torch.float32, device=points.device)
        anchors, extent = references[:, :, None, :, None], extent[:, None]
        offsets = 3 * torch.randn(B, Q, H, N, P, 2, **draw)
        offsets += _away_from_knots((anchors.double() + offsets.double() / extent) * extent).float()
        logits = torch.randn(B, Q, H, N, P, **draw)
        value = torch.randn(B, S, H, self.channels, **draw).to(types.value)
        grad_output = torch.randn(B, Q, H * self.channels, **draw).to(types.value)
        if self.form == FUSED:
            places, weights = offsets.to(types.offsets), logits.to(types.offsets)
            if types.offsets != torch.float32:  # no sample may lie where float32 cannot tell its pixel
                pixels = anchors.double() * extent + places.double() - 0.5
                places = torch.where((pixels - pixels.round()).abs() < 0.01, places + 0.0625, places)
        else:
            places = (anchors + offsets / extent).to(types.locations)
            weights = logits.flatten(3).softmax(-1).view_as(logits).to(types.locations)
            if (
                types.locations != torch.float32
            ):  # all agree on a pixel exactly met, but for one pixel outside
                places = torch.where(places.double() * extent == -0.5, places / 2, places)
        leaves = dict(zip(ARGUMENTS[self.form], (value, places, weights), strict=True))
        return Inputs(self.form, self.shapes, leaves, references, grad_output)


def _pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """[height * width, 2] centres (x, y) of a level's pixels, in 0..1."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


def _away_from_knots(pixels: Tensor) -> Tensor:
    """What to add so that no sample lies within 0.01 pixels of a pixel centre.

    There the gradient of a location jumps, and float32 rounding chooses the side.
    """
    fraction = (pixels - 0.5) - (pixels - 0.5).floor()
    return fraction.clamp(0.01, 0.99) - fraction


def grid_sample_path(shapes: Shapes, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The pure-PyTorch path that every public model falls back to: one `grid_sample` a level."""
    B, _, H, D = value.shape
    Q, P = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    sampled = []
    for level, of_level in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        height, width = shapes[level]
        image = of_level.flatten(2).transpose(1, 2).reshape(B * H, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    flat = weights.transpose(1, 2).reshape(B * H, 1, Q, len(shapes) * P)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * flat).sum(-1)
    return output.view(B, H * D, Q).transpose(1, 2).contiguous()


def indexing_path(shapes: Shapes, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Bilinear sampling by indexing rows of value: what a careful user gives to torch.compile."""
    B, _, H, D = value.shape
    image = torch.arange(B, device=value.device)[:, None, None, None]
    head = torch.arange(H, device=value.device)[:, None]
    output, start = value.new_zeros(B, locations.shape[1], H, D), 0
    for level, (height, width) in enumerate(shapes):
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        for column in (x.floor(), x.floor() + 1):
            for row in (y.floor(), y.floor() + 1):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[:, :, :, level]
                pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                rows = value[image, start + pixel.long(), head]
                output = output + (rows * torch.where(inside, share, 0.0)[..., None]).sum(3)
        start += height * width
    return output.flatten(2)


def _plain(path: Callable[[Shapes, Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> Function:
    """A path that computes in float32 whatever comes, as autocast has it beside float32 locations.

    In the fused form behind what the models do before it: locations from offsets, softmax of the logits.
    """

    def plain(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return path(inputs.shapes, value.float(), locations.float(), weights.float()).to(value.dtype)

    def fused(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1, dtype=torch.float32).view_as(logits)
        return plain(value, _locations(inputs, offsets.float()), weights)

    return plain if inputs.form == PLAIN else fused


def _compiled(path: Any, inputs: Inputs) -> Function:
    return _plain(_compiled_path(path), inputs)


@cache
def _compiled_path(path: Any) -> Any:
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # a backward pass is repeated to be timed
    # beyond the limit of variants a function would run as it is, without a word
    setattr(dynamo, "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit", 128)
    return torch.compile(path, dynamic=False)


def why_not_compiled(device: torch.device) -> str | None:
    """Why inductor cannot compile here, or None."""
    if device.type == "cuda":
        return import_peer("triton")[1]
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"torch.compile finds no {compiler}"


def _level_tensors(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sizes [N, 2] and first positions [N] of the levels, on the device."""
    shapes = torch.tensor(inputs.shapes, device=inputs.grad_output.device)
    return shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1)[:-1]]).cumsum(0)


def _classic(module: Any, inputs: Inputs) -> Function:
    """The 2020 kernel."""
    levels = _level_tensors(inputs)
    return _plain(lambda _, value, *places: module.ms_deform_attn(value, *levels, *places), inputs)


def _deformops(module: Any, backend: str | None, inputs: Inputs) -> Function:
    """Weights in the type of value, as it asks, softmax inside. backend: None for its own choice, Triton."""
    levels = _level_tensors(inputs)
    options = {"softmax": inputs.form == FUSED, "backend": backend and getattr(module.Backend, backend)}

    def call(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        locations = places if inputs.form == PLAIN else _locations(inputs, places.float())
        output: Tensor = module.msda(value, *levels, locations, weights.to(value.dtype), **options)
        return output

    return call


def _deformops_contenders() -> list[Contender]:
    module, missing = import_peer("deformops.registry")
    contenders = []
    for name, backend in ((DEFORMOPS, None), (DEFORMOPS_CUDA, "CUDA")):
        made = differentiable(name, partial(_deformops, module, backend), missing=missing)

        def canonical(result: Any, inputs: Inputs, of: Contender = made) -> dict[str, Tensor]:
            """As exact as what it computes in, whatever type autograd makes of the gradients."""
            found = of.canonical(result, inputs)
            return {name: tensor.to(inputs.leaves["value"].dtype) for name, tensor in found.items()}

        contenders.append(replace(made, canonical=canonical))
    return contenders


def _ours(inputs: Inputs, **options: Any) -> Function:
    shapes, references = inputs.shapes, inputs.references
    if inputs.form == FUSED:
        return lambda value, *rest: ms_deform_attn_fused(value, shapes, references, *rest, **options)
    return lambda value, *rest: ms_deform_attn(value, shapes, *rest, **options)


def _peers(case: Attention, device: torch.device) -> list[Contender]:
    """The fused form has rows of its own on a CPU, none of them quick."""
    module, missing = import_peer("torch_ms_deform_attn")
    if module is not None and device.type == "cuda":
        native, _ = import_peer("torch_ms_deform_attn._C")
        missing = missing if getattr(native, "with_cuda", True) else "built without CUDA"
    form: Row = {"quick": case.form == PLAIN, "beside": _named(OURS, case)}
    return [
        differentiable(_named(GRID_SAMPLE, case), partial(_plain, grid_sample_path), **form),
        differentiable(_named(CLASSIC, case), partial(_classic, module), missing=missing, **form),
    ]


def _compiled_contenders(case: Attention, device: torch.device, **paths: Any) -> list[Contender]:
    options: Row = {"quick": False, "compiles_s": COMPILE_S, "missing": why_not_compiled(device)}
    options["beside"] = _named(OURS, case)
    return [
        differentiable(_named(name + COMPILED, case), partial(_compiled, path), **options)
        for name, path in paths.items()
    ]


def _named(name: str, case: Attention) -> str:
    return name if case.form == PLAIN else name + FUSED_FORM


def _contenders(case: Attention) -> list[Contender]:
    cpu = torch.device("cpu")
    compiled = _compiled_contenders(case, cpu, **{INDEXING: indexing_path})
    return [differentiable(_named(OURS, case), _ours, ours=True), *_peers(case, cpu), *compiled]


def _gpu_contenders(case: Attention, device: torch.device) -> list[Contender]:
    if case.compiled:
        paths = {INDEXING: indexing_path, GRID_SAMPLE: grid_sample_path}
        return _compiled_contenders(case, device, **paths)
    ours = []
    for name, _, why in backends((OPERATOR,), device, case.precision.value):
        # a pin for the call alone costs nothing that would show in its time
        ours.append(differentiable(name, partial(_ours, backend=name), ours=True, missing=why))
        if case.form == PLAIN and name in (CUDA, TRITON):
            again = partial(_ours, backend=name, deterministic=True)
            options: Row = {"ours": True, "missing": why, "passes": (BACKWARD,), "repeatable": True}
            ours.append(differentiable(name + DETERMINISTIC, again, **options))
    return [*ours, *_peers(case, device), *_deformops_contenders()]


@dataclass(frozen=True)
class Expected:
    values: dict[str, Tensor]
    checked: Tensor | None


def _expected(inputs: Inputs, pass_: str) -> Expected:
    exact = by_reference(differentiable(OURS, _ours))(inputs.of_checked(), pass_)
    return Expected(exact, inputs.checked)


def _verify(expected: Expected, result: Mapping[str, Tensor]) -> None:
    if expected.checked is None:
        compare(expected.values, result)
        return
    per_query = [name for name in result if name != "grad_value"]
    compare(expected.values, {**result, **{name: result[name][:, expected.checked] for name in per_query}})
    for name in per_query:
        if name != "output":
            rest = result[name].clone()
            rest[:, expected.checked] = 0
            if rest.count_nonzero():
                raise ContractFailed(f"{name}: not zero for queries without an output gradient")


def _to_check(case: Attention, inputs: Inputs, generator: Generator, queries: int | None) -> Inputs:
    """The same call with a gradient for some random queries only."""
    total = inputs.grad_output.shape[1]
    if queries is None or total <= queries:
        return inputs
    checked = torch.randperm(total, generator=generator, device=generator.device)[:queries]
    grad_output = torch.zeros_like(inputs.grad_output)
    grad_output[:, checked] = inputs.grad_output[:, checked]
    return replace(inputs, grad_output=grad_output, checked=checked)


def touched(inputs: Inputs) -> tuple[int, int]:
    """Corners of all samples that lie inside their level, and distinct rows [D] of value among them."""
    B, S, H, _ = inputs.leaves["value"].shape
    seen = torch.zeros(B * H * S, dtype=torch.bool, device=inputs.grad_output.device)
    row_of_head = torch.arange(B * H, device=seen.device).view(B, 1, H, 1) * S
    corners, start = 0, 0
    for level, (height, width) in enumerate(inputs.shapes):
        locations = inputs.locations[:, :, :, level].float()
        left = (locations[..., 0] * width - 0.5).floor().long()
        top = (locations[..., 1] * height - 0.5).floor().long()
        for x in (left, left + 1):
            for y in (top, top + 1):
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                corners += int(inside.sum())
                seen[(row_of_head + start + y * width + x)[inside]] = True
        start += height * width
    return corners, int(seen.sum())


def _work(inputs: Inputs, pass_: str) -> Work:
    """Inputs once, of value the rows that are touched, and outputs; rows at every corner from the caches.

    Backward also reads the gradient of the output, writes those of the leaves, and adds a float32 row at
    every corner.
    """
    corners, rows = touched(inputs)
    value, *others = inputs.leaves.values()
    row = value.shape[3] * value.element_size()
    read = rows * row + size_of(*others) + (size_of(inputs.references) if inputs.form == FUSED else 0)
    if pass_ == FORWARD:
        return Work(read + size_of(inputs.grad_output), gather=corners * row)  # the output is as large
    written = size_of(value, *others)
    return Work(read + size_of(inputs.grad_output) + written, gather=corners * (row + 4 * value.shape[3]))


# of forward, and of forward and backward
GOALS = {
    (GRID_SAMPLE, "encoder"): (40.0, 35.0),
    (GRID_SAMPLE, "Mask2Former"): (40.0, 35.0),
    (GRID_SAMPLE, "decoder"): (30.0, 10.0),
    (GRID_SAMPLE, "RF-DETR"): (30.0, 18.0),
    (CLASSIC, "encoder"): (5.0, 7.0),
    (CLASSIC, "Mask2Former"): (5.0, 7.0),
    (CLASSIC, "decoder"): (5.0, 3.0),
    (CLASSIC, "RF-DETR"): (5.0, 3.0),
}


def _goal(case: str, pass_: str, peer: str, threads: int) -> float | None:
    found = GOALS.get((peer, case)) if threads <= 2 else None
    return found and found[pass_ != FORWARD]


def _gpu_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """On an H100."""
    encoder, decoder = {"case": "encoder B=2", "form": PLAIN}, {"case": "decoder B=2", "form": PLAIN}
    in_pass = {pass_: [row for row in rows if row["pass"] == pass_] for pass_ in (FORWARD, BACKWARD)}
    for dtype, limit in (("bf16", 130.0), ("fp32", 260.0)):
        forward, backward = ([row for row in of if row["dtype"] == dtype] for of in in_pass.values())
        title, us = f"encoder B=2 {{}}, {dtype}", measured(forward, contender=CUDA, **encoder)
        yield Goal(title.format(FORWARD), "us", "at_most", limit, us)
        for pass_, of_pass in ((FORWARD, forward), (BACKWARD, backward)):
            classic, ours = (measured(of_pass, contender=name, **encoder) for name in (CLASSIC, CUDA))
            name = f"{title.format(pass_)}, classic kernel / ours"
            yield Goal(name, "x", "at_least", 3.0, ratio(classic, ours))
        slower = ratio(measured(backward, contender=CUDA + DETERMINISTIC, **encoder), ours)
        yield Goal(f"{title.format(BACKWARD)}, deterministic / default", "x", "at_most", 1.5, slower)
        both = [
            measured(forward, contender=name, case="encoder B=2", form=FUSED)
            for name in (CLASSIC + FUSED_FORM, CUDA)
        ]
        saved = None if both[0] is None or both[1] is None else both[0] - both[1]
        yield Goal(f"{title.format(FORWARD)}, saved by the fused form", "us", "at_least", 45.0, saved)
        title, us = f"decoder B=2 forward, {dtype}", measured(forward, contender=CUDA, **decoder)
        yield Goal(title, "us", "at_most", 10.0, us)
        call_us = measured(forward, "call_us", contender=CUDA, **decoder)
        yield Goal(f"{title}, call from Python with autograd", "us", "at_most", 15.0, call_us)
    for of, to, limit in ((TRITON, CUDA, 1.5), (CUDA, DEFORMOPS, 1.0), (CUDA, DEFORMOPS_CUDA, 1.0)):
        for pass_, of_pass in in_pass.items():
            worst, where = extreme(max, of_pass, (of,), to, "case", "dtype", "form")
            yield Goal(f"{of} / {to}, {pass_}, worst case{where}", "x", "at_most", limit, worst)


_CASES = (
    Attention("smallest", 1, 1, ((1, 1),), heads=1, channels=4, points=1),
    Attention("RF-DETR", 1, 300, ((40, 40),), heads=16, channels=16, points=2),
    Attention("decoder", 2, 300, COCO_LEVELS),
    Attention("encoder", 1, None, COCO_LEVELS),
    Attention("Mask2Former", 1, None, MASK2FORMER_LEVELS),
)
# in the order of their weight
_GPU_CASES = (
    Attention("encoder B=2", 2, None, COCO_LEVELS),
    Attention("decoder B=2", 2, 300, COCO_LEVELS),
    Attention("Mask2Former B=1", 1, None, MASK2FORMER_LEVELS),
    Attention("RF-DETR B=1", 1, 300, ((40, 40),), heads=16, channels=16, points=2),
    Attention("encoder B=16", 16, None, COCO_LEVELS, quick=False),
    Attention("decoder B=16", 16, 300, COCO_LEVELS, quick=False),
    Attention("Mask2Former B=8", 8, None, MASK2FORMER_LEVELS, quick=False),
)
_TINY = Attention("tiny", 2, None, ((6, 5), (3, 2)), heads=2, channels=8, points=2)
_TINY_BF16 = replace(_TINY, name="tiny bf16", passes=(FORWARD, BACKWARD), precision=BF16, form=FUSED)
_GPU_VARIANTS = [
    *(
        replace(case, precision=precision, form=form)
        for case in _GPU_CASES
        for precision in (BF16, FP32)
        for form in (PLAIN, FUSED)
    ),
    replace(_GPU_CASES[0], precision=ALL_BF16, quick=False),
    *(
        replace(case, precision=precision, compiled=True, quick=False)
        for case in _GPU_CASES[:2]
        for precision in (FP32, BF16)
    ),
]

SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        _work,
        cases=[replace(case, form=form) for case in _CASES for form in (PLAIN, FUSED)],
        gpu_cases=[replace(case, passes=(FORWARD, BACKWARD)) for case in _GPU_VARIANTS],
        tiny=[
            _TINY,
            replace(_TINY, form=FUSED),
            _TINY_BF16,
            replace(_TINY_BF16, precision=ALL_BF16, form=PLAIN),
        ],
        gpu_contenders=_gpu_contenders,
        expected=_expected,
        verify=_verify,
        to_check=_to_check,
        goal=_goal,
        gpu_goals=_gpu_goals,
        cold=True,
    )
]
