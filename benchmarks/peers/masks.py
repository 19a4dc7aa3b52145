"""The criterion of mask classifiers: ours and facebookresearch/Mask2Former's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from benchmarks import contract, goals, official_mask2former
from benchmarks.cases import FORWARD, MaskInputs
from benchmarks.peers.peer import Call, Contender, Peer
from detr_fast.criterion import MaskSetCriterion
from detr_fast.matcher import MaskMatcher
from detr_fast.structures import MaskPredictions


def _criterion(name: str, losses_of: Callable[[MaskInputs, MaskPredictions], dict[str, Tensor]]) -> Contender:
    """Losses of all layers and, in both passes, the gradients of their weighted total."""

    def prepare(inputs: MaskInputs, pass_: str, threads: int) -> Call:
        logits = inputs.predictions.logits.detach().requires_grad_()
        masks = inputs.predictions.masks.detach().requires_grad_()

        def step() -> Mapping[str, Tensor]:
            losses = losses_of(inputs, MaskPredictions(logits, masks))
            return losses if pass_ == FORWARD else contract.mask_losses_and_gradients(losses, logits, masks)

        return step

    return Contender(name, prepare)


def _ours(inputs: MaskInputs, predictions: MaskPredictions) -> dict[str, Tensor]:
    criterion = MaskSetCriterion(predictions.logits.shape[-1] - 1, MaskMatcher(), {})
    return criterion(predictions, inputs.targets, draws=inputs.draws)


def _official(inputs: MaskInputs, predictions: MaskPredictions) -> dict[str, Tensor]:
    classes = predictions.logits.shape[-1] - 1
    return official_mask2former.criterion(predictions.as_dict(), inputs.targets, classes, inputs.draws)


def peers() -> list[Peer]:
    return [
        Peer(
            "mask_criterion",
            _criterion(goals.OFFICIAL_MASK2FORMER, _official),
            _criterion("detr_fast", _ours),
            contract.MASK_CRITERION,
            quick=False,
        )
    ]
