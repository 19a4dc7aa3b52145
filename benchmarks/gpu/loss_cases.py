"""The fused losses of a GPU run, alone: their cases and what each result must meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from benchmarks.cases import FORWARD_BACKWARD, DetectionCase
from benchmarks.contract import Contract, compare
from detr_fast.ops import box_loss, class_loss

BOXES = "boxes"


@dataclass(frozen=True)
class LossInputs:
    """kind: "softmax" or "focal" of `class_loss`, "boxes" of `box_loss`.

    predictions: logits [L, B, Q, K] or boxes [L, B, Q, 4]. targets: labels [sumT] or boxes [sumT, 4].
    query: [L, sumT], random matches.
    """

    kind: str
    predictions: Tensor
    targets: Tensor
    query: Tensor
    sizes: tuple[int, ...]

    def losses_and_gradient(self, predictions: Tensor, backend: str | None = None) -> dict[str, Tensor]:
        """The losses of all layers and the gradient of their sum; predictions: a leaf."""
        if self.kind == BOXES:
            losses = box_loss(predictions, self.targets, self.query, self.sizes, backend=backend)
        else:
            kind: dict[str, object] = {"kind": self.kind}
            losses = class_loss(
                predictions,
                self.targets,
                self.query,
                self.sizes,
                backend=backend,
                **kind,  # type: ignore[arg-type]
            )
        (gradient,) = torch.autograd.grad(losses.sum(), predictions)
        return {"losses": losses.detach(), "gradient": gradient}


@dataclass(frozen=True)
class LossCase:
    """The loss of one kind in the training step of a detection case."""

    detection: DetectionCase
    kind: str
    passes: tuple[str, ...] = (FORWARD_BACKWARD,)

    @property
    def operator(self) -> str:
        return "box_loss" if self.kind == BOXES else "class_loss"

    @property
    def name(self) -> str:
        return f"{self.detection.name} {self.kind}"

    def inputs(self, generator: Generator) -> LossInputs:
        made = self.detection.inputs(generator)
        layers, images, queries = made.predictions.logits.shape[:3]
        order = torch.rand(layers, images, queries, generator=generator).argsort(-1)
        query = torch.cat([order[:, image, :size] for image, size in enumerate(made.sizes)], 1)
        if self.kind == BOXES:
            predictions, targets = made.predictions.boxes, made.boxes
        else:
            predictions, targets = made.predictions.logits, made.labels
        return LossInputs(self.kind, predictions, targets, query, made.sizes)


def by_backend(backend: str | None) -> Callable[[LossInputs], Callable[[], dict[str, Tensor]]]:
    """What makes the timed call of a backend; "reference" is plain PyTorch with autograd."""

    def prepare(inputs: LossInputs) -> Callable[[], dict[str, Tensor]]:
        leaf = inputs.predictions.detach().requires_grad_()
        return lambda: inputs.losses_and_gradient(leaf, backend)

    return prepare


def _expected(inputs: LossInputs, pass_: str) -> dict[str, Tensor]:
    targets = inputs.targets.double() if inputs.kind == BOXES else inputs.targets
    exact = replace(inputs, predictions=inputs.predictions.double(), targets=targets)
    return by_backend("reference")(exact)()


LOSS = Contract(_expected, compare)
