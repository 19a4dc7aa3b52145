"""Multi-scale deformable attention beside `grid_sample`, compiled indexing and the 2020 kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from benchmarks.contract import Contract, ContractFailed, compare
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


@dataclass(frozen=True)
class Precision:
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
        draw = drawn_from(generator)
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
        value = torch.randn(B, S, H, self.channels, **draw).to(self.precision.value)
        grad_output = torch.randn(B, Q, H * self.channels, **draw).to(self.precision.value)
        if self.form == FUSED:
            places, weights = (
                self._narrow_offsets(anchors, offsets, extent),
                logits.to(self.precision.offsets),
            )
        else:
            weights = logits.flatten(3).softmax(-1).view_as(logits).to(self.precision.locations)
            places = self._narrow_locations(anchors + offsets / extent, extent)
        leaves = dict(zip(ARGUMENTS[self.form], (value, places, weights), strict=True))
        return Inputs(self.form, self.shapes, leaves, references, grad_output)

    def _narrow_offsets(self, anchors: Tensor, offsets: Tensor, extent: Tensor) -> Tensor:
        """No sample comes to lie where float32 cannot tell its pixel."""
        if self.precision.offsets == torch.float32:
            return offsets
        offsets = offsets.to(self.precision.offsets)
        pixels = anchors.double() * extent + offsets.double() - 0.5
        return torch.where((pixels - pixels.round()).abs() < 0.01, offsets + 0.0625, offsets)

    def _narrow_locations(self, locations: Tensor, extent: Tensor) -> Tensor:
        """Narrow locations often lie on a pixel exactly, which all agree on, but for one pixel outside."""
        if self.precision.locations == torch.float32:
            return locations
        locations = locations.to(self.precision.locations)
        return torch.where(locations.double() * extent == -0.5, locations / 2, locations)


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


def _float32(path: Function, inputs: Inputs) -> Function:
    """A path that computes in float32 whatever comes, as autocast has it beside float32 locations."""

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return path(inputs.shapes, value.float(), locations.float(), weights.float()).to(value.dtype)

    return call


def _level_tensors(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sizes [N, 2] and first positions [N] of the levels, on the device."""
    shapes = torch.tensor(inputs.shapes, device=inputs.grad_output.device)
    return shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1)[:-1]]).cumsum(0)


def _classic(module: Any, inputs: Inputs) -> Function:
    """The 2020 kernel."""
    shapes, starts = _level_tensors(inputs)

    def path(_: Shapes, value: Tensor, *places: Tensor) -> Tensor:
        output: Tensor = module.ms_deform_attn(value, shapes, starts, *places)
        return output

    return _float32(path, inputs)


def _eager(plain: Callable[[Inputs], Function], inputs: Inputs) -> Function:
    """A plain form behind what the models do before it: locations from offsets, softmax of the logits."""
    function = plain(inputs)

    def call(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1, dtype=torch.float32).view_as(logits)
        return function(value, _locations(inputs, offsets.float()), weights)

    return call


def _deformops(module: Any, backend: str | None, inputs: Inputs) -> Function:
    """Weights in the type of value, as it asks, softmax inside. backend: None for its own choice, Triton."""
    shapes, starts = _level_tensors(inputs)
    options = {"softmax": inputs.form == FUSED, "backend": backend and getattr(module.Backend, backend)}

    def call(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        locations = places if inputs.form == PLAIN else _locations(inputs, places.float())
        output: Tensor = module.msda(value, shapes, starts, locations, weights.to(value.dtype), **options)
        return output

    return call


def _deformops_contenders(case: Attention) -> list[Contender]:
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


@cache
def _compiled(path: Function) -> Function:
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # a backward pass is repeated to be timed
    # beyond the limit of variants a function would run as it is, without a word
    setattr(dynamo, "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit", 128)
    return torch.compile(path, dynamic=False)


def _ours(inputs: Inputs, **options: Any) -> Function:
    shapes, references = inputs.shapes, inputs.references
    if inputs.form == FUSED:
        return lambda value, offsets, logits: ms_deform_attn_fused(
            value, shapes, references, offsets, logits, **options
        )
    return lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights, **options)


def _peers(case: Attention, device: torch.device) -> list[Contender]:
    module, missing = import_peer("torch_ms_deform_attn")
    if module is not None and device.type == "cuda":
        native, _ = import_peer("torch_ms_deform_attn._C")
        missing = missing if getattr(native, "with_cuda", True) else "built without CUDA"
    paths = {
        GRID_SAMPLE: (partial(_float32, grid_sample_path), None),
        CLASSIC: (partial(_classic, module), missing),
    }
    if case.form == PLAIN:
        return [differentiable(name, bind, missing=why) for name, (bind, why) in paths.items()]
    return [
        differentiable(
            name + FUSED_FORM, partial(_eager, bind), beside=OURS + FUSED_FORM, quick=False, missing=why
        )
        for name, (bind, why) in paths.items()
    ]


def _contenders(case: Attention) -> list[Contender]:
    name = OURS if case.form == PLAIN else OURS + FUSED_FORM
    compiled = _compiled_contenders(indexing_path) if case.form == PLAIN else []
    return [differentiable(name, _ours, ours=True), *_peers(case, torch.device("cpu")), *compiled]


def _compiled_contenders(*paths: Function) -> list[Contender]:
    names = {grid_sample_path: GRID_SAMPLE, indexing_path: INDEXING}

    def bind(path: Function, inputs: Inputs) -> Function:
        return _float32(_compiled(path), inputs)

    options: Row = {"quick": False, "compiles_s": COMPILE_S}
    return [differentiable(names[path] + COMPILED, partial(bind, path), **options) for path in paths]


def _gpu_contenders(case: Attention, device: torch.device) -> list[Contender]:
    if case.compiled:
        return _compiled_contenders(grid_sample_path, indexing_path)
    ours = []
    for name, _, why in backends((OPERATOR,), device, case.precision.value):
        # a pin for the call alone costs nothing that would show in its time
        ours.append(differentiable(name, partial(_ours, backend=name), ours=True, missing=why))
        if case.form == PLAIN and name in (CUDA, TRITON):
            again = partial(_ours, backend=name, deterministic=True)
            options: Row = {"ours": True, "missing": why, "passes": (BACKWARD,), "repeatable": True}
            ours.append(differentiable(name + DETERMINISTIC, again, **options))
    return [*ours, *_peers(case, device), *_deformops_contenders(case)]


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
    forward, both = GOALS.get((peer, case), (None, None))
    return None if threads > 2 else forward if pass_ == FORWARD else both


def _gpu_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """On an H100."""
    encoder, decoder = "encoder B=2", "decoder B=2"
    for dtype, limit in (("bf16", 130.0), ("fp32", 260.0)):

        def us(
            contender: str, case: str, pass_: str, form: str = PLAIN, what: str = "kernel_us"
        ) -> float | None:
            key = {"case": case, "form": form, "pass": pass_, "contender": contender, "dtype": dtype}  # noqa: B023
            return measured(rows, what, **key)

        forward, backward = us(CUDA, encoder, FORWARD), us(CUDA, encoder, BACKWARD)
        yield Goal(f"{encoder} forward, {dtype}", "us", "at_most", limit, forward)
        for pass_, ours in ((FORWARD, forward), (BACKWARD, backward)):
            times = ratio(us(CLASSIC, encoder, pass_), ours)
            yield Goal(f"{encoder} {pass_}, {dtype}, classic kernel / ours", "x", "at_least", 3.0, times)
        slower = ratio(us(CUDA + DETERMINISTIC, encoder, BACKWARD), backward)
        yield Goal(f"{encoder} backward, {dtype}, deterministic / default", "x", "at_most", 1.5, slower)
        eager, fused = us(CLASSIC + FUSED_FORM, encoder, FORWARD, FUSED), us(CUDA, encoder, FORWARD, FUSED)
        saved = None if eager is None or fused is None else eager - fused
        yield Goal(f"{encoder} forward, {dtype}, saved by the fused form", "us", "at_least", 45.0, saved)
        yield Goal(f"{decoder} forward, {dtype}", "us", "at_most", 10.0, us(CUDA, decoder, FORWARD))
        call = us(CUDA, decoder, FORWARD, PLAIN, "call_us")
        yield Goal(f"{decoder} forward, {dtype}, call from Python with autograd", "us", "at_most", 15.0, call)
    for of, to, limit in ((TRITON, CUDA, 1.5), (CUDA, DEFORMOPS, 1.0), (CUDA, DEFORMOPS_CUDA, 1.0)):
        for pass_ in (FORWARD, BACKWARD):
            worst, where = _worst(rows, pass_, of, to)
            yield Goal(f"{of} / {to}, {pass_}, worst case{where}", "x", "at_most", limit, worst)


def _worst(rows: Sequence[Row], pass_: str, of: str, to: str) -> tuple[float | None, str]:
    """The largest ratio of two contenders' times, and where it was found."""
    found = []
    for row in rows:
        if row["contender"] == of and row["pass"] == pass_ and "kernel_us" in row:
            key = {name: row[name] for name in ("case", "dtype", "form", "pass")}
            times = ratio(row["kernel_us"], measured(rows, contender=to, **key))
            if times is not None:
                found.append((times, f" ({row['case']}, {row['dtype']}, {row['form']})"))
    return max(found, default=(None, ""))


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
_TINY_ALL_BF16 = replace(_TINY_BF16, precision=ALL_BF16, form=PLAIN)
_GPU_VARIANTS = (
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
)

SUITES = [
    Suite(
        OPERATOR,
        _contenders,
        Contract(_expected, _verify),
        _work,
        cases=tuple(replace(case, form=form) for case in _CASES for form in (PLAIN, FUSED)),
        gpu_cases=tuple(replace(case, passes=(FORWARD, BACKWARD)) for case in _GPU_VARIANTS),
        tiny=(
            _TINY,
            replace(_TINY, form=FUSED),
            _TINY_BF16,
            replace(_TINY_BF16, precision=ALL_BF16, form=PLAIN),
        ),
        gpu_contenders=_gpu_contenders,
        to_check=_to_check,
        goal=_goal,
        gpu_goals=_gpu_goals,
        cold=True,
    )
]
