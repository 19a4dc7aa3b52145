"""What solves the matching cases on a GPU: our backends, and what people use in their place."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import contract, official_detr
from benchmarks.cases import AssignmentInputs, DetectionInputs, MaskInputs
from benchmarks.contract import Contract
from benchmarks.gpu import loss_cases, model_cases
from benchmarks.gpu.contenders import CUDA, TRITON
from benchmarks.gpu.loss_cases import LossCase
from benchmarks.gpu.matching_cases import MatchingJob
from benchmarks.gpu.model_cases import ModelCase
from benchmarks.peers import Contender, all_peers
from benchmarks.peers.models import why_not_theirs
from benchmarks.peers.peer import from_pairs, import_peer
from detr_fast.criterion import MaskSetCriterion, SetCriterion, detection_weights
from detr_fast.matcher import HungarianMatcher, MaskMatcher
from detr_fast.ops import box_match_cost, linear_assignment, use_backend
from detr_fast.ops.box_loss import OPERATOR as BOX_LOSS
from detr_fast.ops.box_match_cost import OPERATOR as MATCH_COST
from detr_fast.ops.class_loss import OPERATOR as CLASS_LOSS
from detr_fast.ops.linear_assignment import OPERATOR as ASSIGNMENT
from detr_fast.ops.mask_match_cost import OPERATOR as MASK_MATCH_COST
from detr_fast.ops.ms_deform_attn import OPERATOR as ATTENTION
from detr_fast.ops.operator import ORDER, Operator
from detr_fast.ops.point_sample import OPERATOR as POINT_SAMPLE
from detr_fast.structures import MaskPredictions, PackedTargets, Predictions

Call = Callable[[], Any]
Canonical = Callable[[Any, Any], Any]
Solver = Callable[[Tensor], Tensor]  # [problems, T, Q] costs -> query of each target [problems, T]

AUCTION = ", auction"
SCIPY = "scipy on the host, copies included"
TORCH_LINEAR_ASSIGNMENT, BIRDER = "torch-linear-assignment", "birder"
OFFICIAL = "facebookresearch/detr"
TRANSFORMERS, PLAIN_PYTORCH = "transformers", "plain PyTorch"
OUR_COSTS = "our costs, padded, "
CONTRACTS = {
    "linear_assignment": contract.ASSIGNMENT,
    "matcher": contract.MATCHER,
    "criterion": contract.CRITERION,
    "mask_criterion": contract.MASK_CRITERION,
    "mask_match_cost": contract.MASK_COSTS,
    "point_sample": contract.POINT_SAMPLE,
    "class_loss": loss_cases.LOSS,
    "box_loss": loss_cases.LOSS,
    "model": model_cases.MODEL,
}
PARTS: dict[str, tuple[Operator, ...]] = {
    "linear_assignment": (ASSIGNMENT,),
    "matcher": (MATCH_COST, ASSIGNMENT),
    "criterion": (MATCH_COST, ASSIGNMENT, CLASS_LOSS, BOX_LOSS),
    "mask_criterion": (MASK_MATCH_COST, ASSIGNMENT, POINT_SAMPLE, CLASS_LOSS),
    "mask_match_cost": (MASK_MATCH_COST,),
    "point_sample": (POINT_SAMPLE,),
    "class_loss": (CLASS_LOSS,),
    "box_loss": (BOX_LOSS,),
    "model": (ATTENTION,),
}


@dataclass(frozen=True)
class MatchingContender:
    """prepare: (inputs on the device) -> the call that is timed, everything constant prepared.

    canonical: (result, inputs) -> the form that the contract compares, on the CPU; not timed.
    missing: why it cannot run here, or None. waits: it needs the host, so that no graph can hold it.
    """

    name: str
    prepare: Callable[[Any], Call]
    canonical: Callable[[Any, Any], Any]
    missing: str | None = None
    waits: bool = False


def rule(job: MatchingJob) -> Contract:
    """What every result of a job must meet."""
    return CONTRACTS[job.case.operator]


def matching_contenders(job: MatchingJob, device: torch.device) -> list[MatchingContender]:
    """Ours first, then the peers. Those that cannot run on `device` come with the reason."""
    case, operator = job.case, job.case.operator
    backends = _ours(operator, device)

    def ours(
        prepare: Callable[[Mapping[str, str]], Callable[[Any], Call]], canonical: Canonical = _as_it_is
    ) -> list[MatchingContender]:
        return [
            MatchingContender(name, prepare(pins), canonical, why) for name, (pins, why) in backends.items()
        ]

    def bound(make: Callable[[Mapping[str, str], Any], Call]) -> Callable[..., Callable[[Any], Call]]:
        return lambda pins: functools.partial(make, pins)

    if isinstance(case, ModelCase):
        peer = MatchingContender(TRANSFORMERS, model_cases.theirs(case.model), _as_it_is, why_not_theirs())
        return [*ours(model_cases.ours), peer]
    if isinstance(case, LossCase):
        plain = MatchingContender(PLAIN_PYTORCH, loss_cases.by_backend("reference"), _as_it_is)
        return [*ours(lambda pins: loss_cases.by_backend(pins[operator])), plain]
    if operator == "criterion":
        peer = MatchingContender(OFFICIAL, _official_criterion, _on_cpu, waits=True)
        return [*ours(bound(_our_criterion), _on_cpu), peer]
    if operator == "matcher":
        solvers = _by_solvers(OUR_COSTS, padded_match, _by_layer, device)
        peer = MatchingContender(OFFICIAL, _official_match, _from_layers, waits=True)
        return [*ours(bound(_our_match), _by_layer), *solvers, peer]
    if operator == "linear_assignment":
        by_auction = functools.partial(_our_assignment, {ASSIGNMENT.name: CUDA}, method="auction")
        return [
            *ours(bound(_our_assignment), _queries),
            MatchingContender(CUDA + AUCTION, by_auction, _queries, backends[CUDA][1]),
            *_by_solvers("", _batched, _queries, device),
            MatchingContender(SCIPY, _scipy, _from_pairs, waits=True),
        ]
    peers = [peer for peer in all_peers() if peer.operator == operator]
    theirs = [
        MatchingContender(
            peer.name,
            functools.partial(_pinned, peer.theirs, job.pass_, {}),
            peer.theirs.canonical,
            peer.missing,
            waits=operator == "mask_criterion",
        )
        for peer in peers
    ]
    if operator == "mask_criterion":
        return [*ours(bound(_our_mask_criterion)), *theirs]
    by_peer = functools.partial(_pinned, peers[0].ours, job.pass_)
    return [*ours(bound(by_peer), peers[0].ours.canonical), *theirs]


def _ours(operator: str, device: torch.device) -> dict[str, tuple[dict[str, str], str | None]]:
    """By backend its pins for the parts of `operator` that have it, and why it cannot run or None.

    Parts without a kernel compiled for CUDA take Triton's there.
    """
    found: dict[str, tuple[dict[str, str], str | None]] = {}
    for name in ORDER:
        having = [part for part in PARTS[operator] if name in part.backends]
        if name == "reference" or not having:
            continue
        reasons = [part.explain(device, torch.float32)[name] for part in having]
        why = next((reason for reason in reasons if reason is not None), None)
        if why is None or name in (CUDA, TRITON):
            found[name] = {part.name: name for part in having}, why
    return found


def _our_assignment(pins: Mapping[str, str], inputs: AssignmentInputs, **options: Any) -> Call:
    costs, sizes = inputs.target_major, inputs.sizes
    return lambda: linear_assignment(costs, sizes, backend=pins[ASSIGNMENT.name], **options)


def _our_match(pins: Mapping[str, str], inputs: DetectionInputs) -> Call:
    matcher, targets = HungarianMatcher(1, 5, 2), PackedTargets.from_list(inputs.targets)

    def call() -> Tensor:
        with use_backend(**pins):
            return matcher.match(inputs.predictions, targets).query

    return call


def _our_criterion(pins: Mapping[str, str], inputs: DetectionInputs) -> Call:
    layers, _, _, classes = inputs.predictions.logits.shape
    criterion = SetCriterion(classes - 1, HungarianMatcher(1, 5, 2), detection_weights(layers))
    targets, (logits, boxes) = PackedTargets.from_list(inputs.targets), _leaves(inputs)

    def call() -> dict[str, Tensor]:
        with use_backend(**pins):
            losses = criterion(Predictions(logits, boxes), targets)
            return contract.losses_and_gradients(losses, criterion.total(losses), logits, boxes)

    return call


def _our_mask_criterion(pins: Mapping[str, str], inputs: MaskInputs) -> Call:
    logits, masks = (
        x.detach().requires_grad_() for x in (inputs.predictions.logits, inputs.predictions.masks)
    )
    criterion = MaskSetCriterion(logits.shape[-1] - 1, MaskMatcher(), {})
    targets = PackedTargets.from_list(inputs.targets)

    def call() -> dict[str, Tensor]:
        with use_backend(**pins):
            losses = criterion(MaskPredictions(logits, masks), targets, draws=inputs.draws)
            return contract.mask_losses_and_gradients(losses, logits, masks)

    return call


def _pinned(contender: Contender, pass_: str, pins: Mapping[str, str], inputs: Any) -> Call:
    """The call of a contender of the CPU benchmark, on whatever device the inputs are."""
    call = contender.prepare(inputs, pass_, 0)

    def pinned() -> Any:
        with use_backend(**pins):
            return call()

    return pinned


def _official_match(inputs: DetectionInputs) -> Call:
    layers = official_detr.layers_of(inputs.outputs)
    return lambda: [official_detr.match(layer, inputs.targets) for layer in layers]


def _official_criterion(inputs: DetectionInputs) -> Call:
    logits, boxes = _leaves(inputs)

    def call() -> dict[str, Tensor]:
        outputs = Predictions(logits, boxes).as_dict()
        losses = official_detr.criterion(outputs, inputs.targets, logits.shape[-1] - 1)
        return contract.losses_and_gradients(losses, contract.weighted_total(losses), logits, boxes)

    return call


def _leaves(inputs: DetectionInputs) -> tuple[Tensor, Tensor]:
    predictions = inputs.predictions
    return predictions.logits.detach().requires_grad_(), predictions.boxes.detach().requires_grad_()


def _scipy(inputs: AssignmentInputs) -> Call:
    """Costs to the host in one copy, a problem after the other there, the queries back in one copy."""
    costs = _as_batch(inputs)

    def call() -> list[tuple[Any, Any]]:
        pairs = [linear_sum_assignment(cost) for cost in costs.cpu().numpy()]
        torch.cat([torch.from_numpy(query) for _, query in pairs]).to(costs.device)
        return pairs

    return call


def _batched(solve: Solver, inputs: AssignmentInputs) -> Call:
    costs = _as_batch(inputs)
    return lambda: solve(costs)


def _as_batch(inputs: AssignmentInputs) -> Tensor:
    """[B, T, Q]: problems of one size need no padding."""
    return inputs.target_major.view(len(inputs.sizes), inputs.sizes[0], -1)


def padded_match(solve: Solver, inputs: DetectionInputs) -> Call:
    """Our costs, padded to the most targets with rows of zeros, which leave the optimum what it is."""
    images, most = len(inputs.sizes), max(inputs.sizes)
    slots = torch.tensor(
        [image * most + i for image, size in enumerate(inputs.sizes) for i in range(size)],
        device=inputs.labels.device,
    )
    predictions = inputs.predictions

    def call() -> Tensor:
        costs = box_match_cost(
            predictions.logits, predictions.boxes, inputs.labels, inputs.boxes, inputs.sizes
        )
        padded = costs.new_zeros(len(costs), images * most, costs.shape[-1]).index_copy_(1, slots, costs)
        query = solve(padded.view(len(costs) * images, most, -1))
        return query.view(len(costs), -1).index_select(1, slots)

    return call


def _by_solvers(
    prefix: str,
    prepare: Callable[[Solver, Any], Call],
    canonical: Callable[[Any, Any], Any],
    device: torch.device,
) -> list[MatchingContender]:
    """The peers that solve a batch on the device, each in what `prepare` makes of its solver."""
    module, missing = import_peer("torch_linear_assignment")
    birder: Any = None
    reason: str | None = "needs a CUDA device"
    if device.type == "cuda":
        birder, reason = birder_operator()
    else:
        missing = missing or "needs a CUDA device"

    def by_birder(costs: Tensor) -> Tensor:
        query: Tensor = birder(costs)[0]
        return query

    def by_torch_linear_assignment(costs: Tensor) -> Tensor:
        query: Tensor = module.batch_linear_assignment(costs)
        return query

    return [
        MatchingContender(
            prefix + TORCH_LINEAR_ASSIGNMENT,
            functools.partial(prepare, by_torch_linear_assignment),
            canonical,
            missing,
            waits=True,
        ),
        MatchingContender(prefix + BIRDER, functools.partial(prepare, by_birder), canonical, reason),
    ]


@functools.cache
def birder_operator() -> tuple[Any, str | None]:
    """birder's CUDA solver, compiled from the package's sources as birder does, or why there is none.

    The package itself is not imported: it needs a dozen others that the kernel has no use for.
    """
    package = importlib.util.find_spec("birder")
    if package is None or not package.submodule_search_locations:
        return None, "No module named 'birder'"
    folder = Path(package.submodule_search_locations[0]) / "kernels" / "linear_assignment"
    try:
        from torch.utils.cpp_extension import get_default_build_root, load

        build = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "birder_assignment"
        build.mkdir(parents=True, exist_ok=True)
        if (build / "lock").exists():  # `load` would wait for it for ever
            return None, f"is being compiled, or its compilation was stopped: {build.name}/lock"
        load(
            "linear_assignment",
            [str(folder / "op.cpp"), str(folder / "linear_assignment_cuda.cu")],
            extra_cflags=["-O3"],
            extra_cuda_cflags=["-O3", "--restrict"],
            build_directory=str(build),
            with_cuda=True,
            is_python_module=False,
        )
        return torch.ops.linear_assignment.batch_linear_assignment, None
    except Exception as error:  # of a compiler, a linker or a loader
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _queries(result: Tensor, inputs: AssignmentInputs) -> Sequence[Tensor]:
    return result.long().cpu().flatten().split(inputs.sizes)


def _from_pairs(result: Any, inputs: AssignmentInputs) -> list[Tensor]:
    return from_pairs(result, inputs.sizes)


def _by_layer(result: Tensor, inputs: DetectionInputs) -> list[Tensor]:
    return [query for layer in result.long().cpu() for query in layer.split(inputs.sizes)]


def _from_layers(result: list[official_detr.Indices], inputs: DetectionInputs) -> list[Tensor]:
    pairs = ([(target, query) for query, target in layer] for layer in result)
    return [query for layer in pairs for query in from_pairs(layer, inputs.sizes)]


def _on_cpu(result: dict[str, Tensor], inputs: DetectionInputs) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in result.items()}


def _as_it_is(result: Any, inputs: Any) -> Any:
    return result
