"""What a benchmark is made of: cases, contenders, a contract, a floor. `benchmarks/suites` holds them.

Letters: `B` images, `L` decoder layers, `Q` queries, `T` targets of one image, `sumT` targets of the
batch, `K` classes, `H` heads, `D` head channels, `S` value positions, `N` levels, `P` points.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from benchmarks.clocks import Call, Work
from benchmarks.contract import compare, in_float64, losses_and_gradients
from detr_fast.ops import OPERATORS, use_backend
from detr_fast.ops.operator import ORDER
from detr_fast.structures import PackedTargets

Row = dict[str, Any]

FORWARD, BACKWARD, FORWARD_BACKWARD = "forward", "backward", "forward+backward"
RECORDED = "forward, recorded for backward"
OURS = "detr_fast"
CUDA, TRITON = "cuda", "triton"


class Case(Protocol):
    """Sizes of one operator, and the passes that are timed. quick: whether the quick run has it."""

    @property
    def name(self) -> str: ...
    @property
    def passes(self) -> Sequence[str]: ...
    @property
    def quick(self) -> bool: ...
    def inputs(self, generator: Generator) -> Any:
        """Inputs of one call, drawn from `generator`, on its device."""


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    prepare: (inputs, pass) -> the call that is timed, everything else done; threads are torch's.
    canonical: (result, inputs) -> the form that the contract compares; not timed.
    beside: the contender of ours that a peer is compared with, on the same inputs in the same layout.
    quick: whether the quick run on a CPU has this peer.
    missing: why it cannot run here, or None.
    waits: it needs the host, so that no CUDA graph can hold it.
    repeatable: two calls must agree bit for bit. passes: of a case, those that it takes part in.
    compiles_s: its first call compiles, for about so long, which cannot be interrupted.
    """

    name: str
    prepare: Callable[[Any, str], Call]
    canonical: Callable[[Any, Any], Any] = lambda result, inputs: result
    ours: bool = False
    beside: str = OURS
    quick: bool = True
    missing: str | None = None
    waits: bool = False
    repeatable: bool = False
    passes: Sequence[str] = (FORWARD, BACKWARD, FORWARD_BACKWARD)
    compiles_s: float = 0.0


class Goal(NamedTuple):
    """What a row of a GPU run is held to. bound: at_most or at_least. measured: None where no row tells."""

    goal: str
    unit: str
    bound: str
    limit: float
    measured: float | None


@dataclass(frozen=True, eq=False)
class Suite:
    """All about one operator, matcher, criterion or model.

    contenders: of a case; ours first. work: (inputs, pass) -> the floor.
    cases: on a CPU, where each peer is timed beside ours. gpu_cases: on a GPU, where each is timed alone.
    tiny: cases that take milliseconds, in place of both in the tests.
    gpu_contenders: (case, device) -> those on a GPU; default: ours once for each backend, and the peers.
    expected: (inputs, pass) -> what `verify(expected, result)` compares every result with; default: ours, by
        the operators' references in float64.
    to_check: (case, inputs, generator, queries) -> the inputs of the call whose result is compared; queries:
        of how many, where that is cheaper (None: all).
    parts: the names of the operators in it, by default its own.
    goal: (case, pass, peer, threads) -> the least ratio on a CPU, or None. gpu_goals: of a GPU run's rows.
    summary: rows over all cases, from the rows of a CPU run.
    cold: on a GPU inputs rotate among copies, so that no call finds its own in the cache.
    busy: a CPU run keeps every core busy beside the calls.
    by_default: whether a run has it that names no operators.
    """

    operator: str
    contenders: Callable[[Any], list[Contender]]
    work: Callable[[Any, str], Work]
    cases: Sequence[Case]
    gpu_cases: Sequence[Case]
    tiny: Sequence[Case]
    gpu_contenders: Callable[[Any, torch.device], list[Contender]] | None = None
    expected: Callable[[Any, str], Any] | None = None
    verify: Callable[[Any, Any], None] = compare
    to_check: Callable[[Any, Any, Generator, int | None], Any] = lambda case, inputs, generator, queries: (
        inputs
    )
    parts: Sequence[str] = ()
    goal: Callable[[str, str, str, int], float | None] = lambda case, pass_, peer, threads: None
    gpu_goals: Callable[[Sequence[Row]], Iterable[Goal]] = lambda rows: ()
    summary: Callable[[Sequence[Row]], list[Row]] = lambda rows: []
    cold: bool = False
    busy: bool = False
    by_default: bool = True

    def names(self) -> set[str]:
        """What it is asked for by: its operator, and the first word of one that has several."""
        return {self.operator, self.operator.partition(" ")[0]}

    def at_tiny_sizes(self) -> Suite:
        """With tiny cases in place of its own, and without what takes seconds to compile."""

        def contenders(case: Any) -> list[Contender]:
            return [contender for contender in self.contenders(case) if not contender.compiles_s]

        return replace(self, cases=self.tiny, gpu_cases=self.tiny, contenders=contenders)

    def alone(self, case: Any, device: torch.device) -> list[Contender]:
        """The contenders of a GPU run."""
        if self.gpu_contenders is not None:
            return self.gpu_contenders(case, device)
        ours, *peers = self.contenders(case)
        parts = self.parts or (self.operator,)
        return [*pinned(ours, parts, device), *(peer for peer in peers if not peer.ours)]

    def expected_of(self, case: Case, inputs: Any, pass_: str) -> Any:
        expected = self.expected or by_reference(self.contenders(case)[0])
        return expected(inputs, pass_)


@cache
def all_suites() -> tuple[Suite, ...]:
    """Those of every module in `benchmarks/suites`, in the order of the modules' names."""
    folder = importlib.import_module("benchmarks.suites")
    modules = [
        importlib.import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)
    ]
    return tuple(suite for module in modules for suite in module.SUITES)


def backends(
    parts: Sequence[str], device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """(backend, its pins for the parts that have it, why it cannot run or None) for all but the reference.

    GPU backends are always listed, the others where they serve the device. Parts without a kernel
    compiled for CUDA take Triton's there.
    """
    for name in ORDER:
        having = [part for part in OPERATORS if part.name in parts and name in part.backends]
        if name == "reference" or not having:
            continue
        why = next((why for part in having if (why := part.explain(device, dtype)[name])), None)
        if why is None or name in (CUDA, TRITON):
            yield name, {part.name: name for part in having}, why


def pinned(ours: Contender, parts: Sequence[str], device: torch.device) -> list[Contender]:
    """Ours once for each backend, named after it."""

    def prepare(pins: Mapping[str, str], inputs: Any, pass_: str) -> Call:
        with use_backend(**pins):
            call = ours.prepare(inputs, pass_)

        def pinned_call() -> Any:
            with use_backend(**pins):
                return call()

        return pinned_call

    return [
        replace(ours, name=name, prepare=partial(prepare, pins), missing=why)
        for name, pins, why in backends(parts, device)
    ]


def differentiable(name: str, bind: Callable[[Any], Callable[..., Tensor]], **options: Any) -> Contender:
    """Of `bind(inputs)`, a function of `inputs.leaves`; its output has the gradient `inputs.grad_output`."""

    def prepare(inputs: Any, pass_: str) -> Call:
        function = bind(inputs)
        if pass_ == FORWARD:
            tensors = tuple(inputs.leaves.values())
            return lambda: (function(*tensors),)
        leaves = leaves_of(*inputs.leaves.values())
        if pass_ == RECORDED:
            return lambda: function(*leaves)
        if pass_ == BACKWARD:
            output = function(*leaves)
            return lambda: torch.autograd.grad(output, leaves, inputs.grad_output, retain_graph=True)

        def step() -> tuple[Tensor, ...]:
            output = function(*leaves)
            return output, *torch.autograd.grad(output, leaves, inputs.grad_output)

        return step

    def canonical(result: tuple[Tensor, ...], inputs: Any) -> dict[str, Tensor]:
        keys = ("output", *(f"grad_{leaf}" for leaf in inputs.leaves))
        return dict(zip(keys, (tensor.detach() for tensor in result), strict=False))

    return Contender(name, prepare, canonical, **options)


def criterion(
    name: str, losses_of: Callable[..., Any], weights: Mapping[str, float], **options: Any
) -> Contender:
    """Losses of all layers, `losses_of(inputs, targets, **leaves)`, and gradients of their weighted sum.

    In a forward pass the losses alone, with what their gradients need.
    """

    def prepare(inputs: Any, pass_: str) -> Call:
        leaves = dict(zip(inputs.leaves, leaves_of(*inputs.leaves.values()), strict=True))
        targets = targets_of(inputs) if options.get("ours") else inputs.targets

        def step() -> Any:
            losses = losses_of(inputs, targets, **leaves)
            return losses if pass_ == FORWARD else losses_and_gradients(losses, weights, **leaves)

        return step

    return Contender(name, prepare, **options)


def targets_of(inputs: Any) -> Any:
    """The list, which our call packs; on a GPU they are packed before, as a loader does."""
    first, *_ = inputs.leaves.values()
    return PackedTargets.from_list(inputs.targets) if first.is_cuda else inputs.targets


def by_reference(contender: Contender) -> Callable[[Any, str], Any]:
    """What a contender makes of the same inputs in float64, with the operators' references."""

    def expected(inputs: Any, pass_: str) -> Any:
        exact = in_float64(inputs)
        with use_backend("reference"):
            return contender.canonical(contender.prepare(exact, pass_)(), exact)

    return expected


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def drawn_from(generator: Generator) -> dict[str, Any]:
    """Keywords of torch's random functions, for numbers from `generator` on its device."""
    return {"generator": generator, "device": generator.device}


def import_peer(module: str) -> tuple[Any, str | None]:
    """A module and None, or None and why it does not import."""
    try:
        return importlib.import_module(module), None
    except (ImportError, SyntaxError) as error:  # or it is written for a later Python
        return None, str(error).splitlines()[0].rpartition("/")[2][:100]


def size_of(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measured(rows: Sequence[Row], what: str = "kernel_us", **key: Any) -> float | None:
    """The time in the first row with these values, or None where it was not measured."""
    found = (row[what] for row in rows if what in row and key.items() <= row.items())
    return next(found, None)


def ratio(of: float | None, to: float | None) -> float | None:
    return None if of is None or to is None else of / to


def extreme(
    pick: Callable[..., Any], rows: Sequence[Row], of: Sequence[str], to: str, *names: str
) -> tuple[float | None, str]:
    """The least or largest (`pick`) ratio of the fastest of some contenders to another, and where it is.

    names: the fields of a row that the two must share, which also tell where.
    """
    found = []
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        same = dict(zip(names, key, strict=True))
        times = [time for name in of if (time := measured(rows, contender=name, **same)) is not None]
        times_of_it = ratio(min(times, default=None), measured(rows, contender=to, **same))
        if times_of_it is not None:
            found.append((times_of_it, ", ".join(key)))
    most, where = pick(found, default=(None, ""))
    return most, where and f" ({where}, of {len(found)})"
