"""class_loss and box_loss beyond the contract: derivatives, tiny losses, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as entropy

from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.ops import box_loss, class_loss
from detr_fast.ops.class_loss import OPERATOR
from tests.ops import interpreter
from tests.ops.cases import box_loss as boxes_of
from tests.ops.cases import class_loss as classes_of
from tests.ops.simulated import simulated

SIZES = (3, 0, 2)


def class_inputs(rng: torch.Generator, classification: str) -> dict:
    return classes_of.make(rng, SIZES, 6, 4, 2, classification=classification)


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_reference_class_loss_has_right_derivatives(
    classification: str, gamma: float, rng: torch.Generator
) -> None:
    inputs = class_inputs(rng, classification)
    logits = inputs.pop("logits").requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return class_loss(logits, **inputs, gamma=gamma, backend="reference")

    assert torch.autograd.gradcheck(loss, logits)


QUALITY_LOSSES = {  # as the papers' code writes them: of p, the box's quality q and where a class is wanted
    "varifocal": lambda x, p, q, wanted: (
        (0.75 * p.detach() ** 2 * (1 - wanted) + q) * entropy(x, q, reduction="none")
    ),
    "matching-aware": lambda x, p, q, wanted: (
        (p.detach() ** 2 * (1 - wanted) + wanted) * entropy(x, q**2, reduction="none")
    ),
    "IoU-aware": lambda x, p, q, wanted: torch.where(
        wanted > 0, entropy(x, (p**0.25 * q**0.75).detach(), reduction="none"), -(p**2) * (1 - p).log()
    ),
}


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_target_weights_express_published_losses(name: str, rng: torch.Generator) -> None:
    labels, query = torch.tensor([2, 0, 2]), torch.tensor([[5, 1, 3], [0, 5, -1]])
    quality = torch.rand(2, 3, generator=rng, dtype=torch.float64)
    logits = (3 * torch.randn(2, 1, 6, 4, generator=rng, dtype=torch.float64)).requires_grad_()
    matched = [(layer, 0, int(query[layer, t]), int(labels[t]), t) for layer in (0, 1) for t in (0, 1, 2)]
    q, wanted = torch.zeros(2, *logits.shape, dtype=torch.float64)
    score = torch.zeros_like(quality)
    for layer, image, row, label, t in matched:
        if row >= 0:
            q[layer, image, row, label], wanted[layer, image, row, label] = quality[layer, t], 1
            score[layer, t] = logits[layer, image, row, label].detach().sigmoid()
    expected = QUALITY_LOSSES[name](logits, logits.sigmoid(), q, wanted).sum((1, 2, 3))
    (expected_gradient,) = torch.autograd.grad(expected @ torch.tensor([1.0, 2.0]).double(), logits)

    target = {"varifocal": quality, "matching-aware": quality**2, "IoU-aware": score**0.25 * quality**0.75}[
        name
    ]
    weights = torch.stack((target, 1 - target), -1) * (quality[..., None] if name == "varifocal" else 1)
    found = class_loss(
        logits.float(),
        labels,
        query,
        [3],
        classification="focal" if name == "IoU-aware" else "varifocal",
        target_weights=weights,
        alpha=0.25 if name == "varifocal" else 0.0,
    )
    (gradient,) = torch.autograd.grad(found @ torch.tensor([1.0, 2.0]), logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_reference_loss_of_target_weights_has_right_derivatives(rng: torch.Generator) -> None:
    inputs = classes_of.make(rng, SIZES, 6, 4, 2, classification="focal", weighted=True)
    logits = inputs.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: class_loss(x, **inputs, backend="reference"), logits)


def test_reference_box_loss_has_right_derivatives(rng: torch.Generator) -> None:
    inputs = boxes_of.make(rng, SIZES, 6, 2)
    boxes = inputs.pop("boxes").requires_grad_()
    assert torch.autograd.gradcheck(lambda boxes: box_loss(boxes, **inputs, backend="reference"), boxes)


def test_box_loss_is_the_sum_over_pairs(rng: torch.Generator) -> None:
    inputs = boxes_of.make(rng, SIZES, 6, 2)
    l1, giou = torch.zeros(2, 2, dtype=torch.float64)
    images = torch.arange(3).repeat_interleave(torch.tensor(SIZES)).tolist()
    for layer in range(2):
        for t, (image, target) in enumerate(zip(images, inputs["target_boxes"], strict=True)):
            found = inputs["boxes"][layer, image, inputs["query"][layer, t]]
            l1[layer] += (found - target).abs().sum()
            pair = (box_cxcywh_to_xyxy(box[None]) for box in (found, target))
            giou[layer] += 1 - generalized_box_iou(*pair)[0, 0]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        single = {k: v.to(dtype) if k.endswith("boxes") else v for k, v in inputs.items()}
        found = box_loss(**single).double()
        torch.testing.assert_close(found, torch.stack((l1, giou)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("right", [8.0, 20.0, 40.0])
def test_losses_of_certain_answers_keep_their_digits(right: float) -> None:
    """Relative to the loss itself: 1 - p would have lost them."""
    logits = torch.tensor([right, -right, -right])[None, None, None]
    arguments = (torch.tensor([0]), torch.tensor([[0]]), [1])
    found = class_loss(logits, *arguments, classification="focal")
    expected = class_loss(logits.double(), *arguments, classification="focal", backend="reference")
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_show_in_their_layer_alone(
    classification: str, bad: float, rng: torch.Generator
) -> None:
    inputs = class_inputs(rng, classification)
    clean, logits = inputs.pop("logits").float(), None
    logits = clean.clone()
    logits[1, 0, int(inputs["query"][1, 0]), int(inputs["labels"][0])] = bad
    found, expected = class_loss(logits, **inputs), class_loss(clean, **inputs)
    assert found[0] == expected[0]
    certain = classification == "focal" and bad == float(
        "inf"
    )  # a class that is certainly right costs nothing
    assert found[1].isfinite() if certain else not found[1] < 1e30


def test_boxes_that_are_not_finite_show_in_their_layer_alone(rng: torch.Generator) -> None:
    inputs = boxes_of.make(rng, SIZES, 6, 2)
    inputs["boxes"] = inputs["boxes"].float()
    expected = box_loss(**inputs)
    inputs["boxes"][1, 2, inputs["query"][1, 4], 2] = torch.nan
    found = box_loss(**inputs)
    assert torch.equal(found[:, 0], expected[:, 0])
    assert found[:, 1].isnan().all()


@pytest.mark.parametrize(
    ("make", "name", "function"),
    [
        (lambda rng: class_inputs(rng, "softmax"), "logits", class_loss),
        (lambda rng: boxes_of.make(rng, SIZES, 6, 2), "boxes", box_loss),
    ],
)
def test_a_second_derivative_is_refused(
    make: Callable, name: str, function: Callable, rng: torch.Generator
) -> None:
    inputs = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in make(rng).items()
    }
    leaf = inputs.pop(name).requires_grad_()
    (gradient,) = torch.autograd.grad(function(**{name: leaf}, **inputs).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice .* backend='reference' can"):
        gradient.sum().backward()


def test_class_loss_triton_tells_a_bad_label_by_nan(rng: torch.Generator) -> None:
    """Where no label can be looked at."""
    if interpreter.why_not():
        pytest.skip(str(interpreter.why_not()))
    inputs = class_inputs(rng, "softmax")
    inputs["logits"] = inputs["logits"].float()
    inputs["labels"][4] = 4
    with simulated(OPERATOR, "triton") as name:
        logits = inputs.pop("logits").requires_grad_()
        loss = class_loss(logits, **inputs, backend=name)
        loss.sum().backward()
    assert loss.isnan().all()
    assert logits.grad[:, 2].isnan().all()
