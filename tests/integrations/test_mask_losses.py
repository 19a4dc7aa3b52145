"""Mask criteria of accelerated models give the losses of before, up to the draw of random points."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.eomt.modeling_eomt import EomtLoss
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3Loss
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher, MaskFormerLoss
from transformers.models.oneformer.modeling_oneformer import OneFormerHungarianMatcher, OneFormerLoss
from transformers.models.videomt.modeling_videomt import VideomtLoss

import detr_fast
from tests.integrations import tiny

POINTS, CLASSES = 20000, 5
CONFIGS = {
    Mask2FormerLoss: hf.Mask2FormerConfig,
    EomtLoss: hf.EomtConfig,
    EomtDinov3Loss: hf.EomtDinov3Config,
    VideomtLoss: hf.VideomtConfig,
}
CRITERIA = [*CONFIGS, OneFormerLoss, MaskFormerLoss]


def criterion_of(kind: Any) -> nn.Module:
    if kind is OneFormerLoss:
        matcher = OneFormerHungarianMatcher(2.0, 5.0, 5.0, POINTS)
        return OneFormerLoss(CLASSES, matcher, {}, 0.1, POINTS, 3.0, 0.75, 0.07)
    if kind is MaskFormerLoss:
        return MaskFormerLoss(CLASSES, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, 0.1)
    return kind(CONFIGS[kind](num_labels=CLASSES, train_num_points=POINTS), {})


def example(kind: Any, size: tuple[int, int] = (32, 48)) -> dict[str, Any]:
    """Predictions [B, 12, 16, 24] near their targets, in three layers, with one clear matching."""
    labels = [torch.randint(0, CLASSES, (count,)) for count in (3, 6)]
    masks = [nn.functional.interpolate((torch.rand(1, len(x), 8, 12) < 0.5).float(), size)[0] for x in labels]

    def predictions() -> dict[str, torch.Tensor]:
        found = torch.randn(2, 12, 16, 24)
        for image, wanted in zip(found, masks, strict=True):
            image[: len(wanted)] += 6 * nn.functional.interpolate(wanted[None], (16, 24))[0] - 3
        classes = torch.randn(2, 12, CLASSES + 1)
        return {
            "masks_queries_logits": found.requires_grad_(),
            "class_queries_logits": classes.requires_grad_(),
        }

    given = predictions() | {"auxiliary_predictions": [predictions(), predictions()]}
    given |= {"mask_labels": masks, "class_labels": labels}
    if kind is OneFormerLoss:
        given |= {name: torch.randn(2, 12, 8) for name in ("contrastive_queries_logits", "text_queries")}
    return given


def gradients(criterion: nn.Module, given: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    losses = criterion(**given)
    layers = [*given["auxiliary_predictions"], given]
    leaves = [layer[key] for key in ("class_queries_logits", "masks_queries_logits") for layer in layers]
    return losses, list(torch.autograd.grad(sum(losses.values()), leaves))


@pytest.mark.parametrize("kind", CRITERIA)
def test_losses_and_gradients(kind: Any) -> None:
    criterion, given = criterion_of(kind), example(kind)
    expected, wanted = gradients(criterion, given)
    assert detr_fast.accelerate(criterion).replaced == [
        ("", "the whole mask loss, all decoder layers at once")
    ]
    losses, found = gradients(criterion, given)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        noise = 0.03 if kind is not MaskFormerLoss and ("mask" in name or "dice" in name) else 1e-5
        torch.testing.assert_close(losses[name], loss, rtol=noise, atol=0, msg=name)
    for x, y in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    for x, y in zip(found[3:], wanted[3:], strict=True):
        assert torch.equal(x.abs().sum((2, 3)) > 0, y.abs().sum((2, 3)) > 0)  # the same queries are matched
        assert nn.functional.cosine_similarity(x.flatten(), y.flatten(), 0) > 0.95
        torch.testing.assert_close(x.norm(), y.norm(), rtol=0.1, atol=0)
        if kind is MaskFormerLoss:  # nothing is random
            assert (x - y).abs().max() <= 1e-6 * y.abs().max()
    detr_fast.restore(criterion)
    assert type(criterion) is kind


@pytest.mark.parametrize("kind", [Mask2FormerLoss, MaskFormerLoss])
@pytest.mark.parametrize("odd", ["soft", "sizes", "stride"])
def test_what_we_do_not_serve_goes_to_the_criterion_replaced(odd: str, kind: Any) -> None:
    criterion = criterion_of(kind)
    given = example(kind, (33, 50) if odd == "stride" else (32, 48))
    if odd == "soft":
        given["mask_labels"] = [x * 0.9 for x in given["mask_labels"]]
    elif odd == "sizes":
        given["mask_labels"][0] = given["mask_labels"][0][:, :30]
    torch.manual_seed(0)
    expected = criterion(**given)
    assert detr_fast.accelerate(criterion).replaced
    torch.manual_seed(0)
    assert all(torch.equal(x, expected[name]) for name, x in criterion(**given).items())


@pytest.mark.parametrize("name", ["mask2former", "maskformer", "oneformer"])
def test_whole_models_train(name: str) -> None:
    model, given = (
        tiny.build(name, is_training=True) if name == "oneformer" else tiny.build(name),
        tiny.inputs(name),
    )
    masks = [(torch.rand(count, tiny.SIZE, tiny.SIZE) < 0.5).float() for count in (3, 0)]
    given |= {"mask_labels": masks, "class_labels": [torch.arange(len(x)) % 2 for x in masks]}
    if name == "oneformer":
        given["text_inputs"] = torch.randint(0, 200, (tiny.BATCH, 8, 8))
    torch.manual_seed(0)  # dropout
    before = copy.deepcopy(model)(**given).loss
    report = detr_fast.accelerate(model)
    assert ("criterion", "the whole mask loss, all decoder layers at once") in report.replaced
    torch.manual_seed(0)
    loss = model(**given).loss
    loss.backward()
    torch.testing.assert_close(loss, before, rtol=1e-5 if name == "maskformer" else 0.2, atol=0)


def test_a_changed_criterion_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mask2FormerLoss, "loss_labels", lambda *_: {"loss_cross_entropy": torch.tensor(1.0)})
    criterion = criterion_of(Mask2FormerLoss)
    assert "not those of Mask2Former" in detr_fast.accelerate(criterion).skipped[0][1]
