"""Losses of accelerated models are those of before, gradients included."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.loss.loss_rf_detr import RfDetrHungarianMatcher

import detr_fast
from detr_fast.integrations import losses
from detr_fast.integrations.accelerate import Report
from tests.integrations import tiny


def case(name: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = tiny.build(name, **(tiny.LOSSES[name] | options)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    given = tiny.inputs(name)
    if name == "yolos":
        del given["pixel_mask"]
    return model, given | {"labels": tiny.targets(model.config.num_labels if "grounding" not in name else 2)}


def step(model: nn.Module, given: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(5)  # dropout and denoising
    output = model(**given)
    output.loss.backward()
    named = {"loss": output.loss.detach()} | {key: x.detach() for key, x in output.loss_dict.items()}
    return named, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def without_attention(model: nn.Module) -> Report:
    """Accelerates a model and takes everything back but its loss."""
    report = detr_fast.accelerate(model)
    chosen = {m: m.loss_function for m in model.modules() if "_loss_function" in m.__dict__}
    detr_fast.restore(model)
    for module, loss in chosen.items():
        module.loss_function = loss
    return report


@pytest.mark.parametrize("name", tiny.LOSSES)
def test_losses_and_gradients_stay_the_same(name: str) -> None:
    model, given = case(name)
    before = copy.deepcopy(model)
    expected, expected_gradients = step(before, given)
    report = without_attention(model)
    assert any(path == "loss_function" for path, _ in report.replaced), str(report)
    got, gradients = step(model, given)
    assert got.keys() == expected.keys()
    for key, x in expected.items():
        torch.testing.assert_close(got[key], x, rtol=1e-5, atol=1e-5, msg=key)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(x.abs().max()) for x in expected_gradients.values())
    for key, x in expected_gradients.items():
        assert (gradients[key] - x).abs().max() <= 1e-5 * largest, key
    detr_fast.restore(model)
    assert not isinstance(model.loss_function, losses.FastLoss)


def test_masks_take_part_in_the_matching_of_rf_detr() -> None:
    """At random points, which both draw alike."""
    model = tiny.build("rf_detr_segm", num_labels=5).train()
    given = tiny.inputs("rf_detr_segm") | {"labels": tiny.targets(5)}
    for target in given["labels"]:
        target["masks"] = torch.rand(len(target["boxes"]), tiny.SIZE, tiny.SIZE) < 0.5
    before = copy.deepcopy(model)
    report = without_attention(model)
    assert "its losses labels, boxes, cardinality replaced" in str(report)
    (expected, _), (found, _) = step(before, given), step(model, given)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0.2, atol=0)

    matcher = RfDetrHungarianMatcher(1.0, 2.0, 3.0, 2, 5.0, 7.0)
    layers = [
        {
            "logits": torch.randn(2, 12, 5),
            "pred_boxes": torch.rand(2, 12, 4) * 0.4 + 0.1,
            "pred_masks": 3 * torch.randn(2, 12, 4, 6),
        }
        for _ in range(3)
    ]
    for target in given["labels"]:
        target["masks"] = torch.rand(len(target["boxes"]), 16, 24) < 0.5
    torch.manual_seed(7)
    indices = losses.match_layers(matcher, layers, given["labels"], 2, "focal")
    torch.manual_seed(7)
    for layer in layers:
        pairs = zip(indices[id(layer["logits"])], matcher(layer, given["labels"], 2), strict=True)
        assert all(torch.equal(x, y) for ours, theirs in pairs for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_copies_and_pickles_keep_the_loss(name: str) -> None:
    model, given = case(name)
    detr_fast.accelerate(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.loss_function, losses.FastLoss)
        torch.testing.assert_close(step(other, given)[0], step(copy.deepcopy(model), given)[0])
    assert ("loss_function", "already accelerated") in detr_fast.accelerate(model).skipped


def test_no_targets_at_all() -> None:
    model, given = case("deformable_detr")
    given["labels"] = [{key: x[:0] for key, x in target.items()} for target in given["labels"]]
    expected, _ = step(copy.deepcopy(model), given)
    without_attention(model)
    torch.testing.assert_close(step(model, given)[0], expected)


def test_more_targets_than_queries() -> None:
    model, given = case("detr", num_queries=3)
    expected, _ = step(copy.deepcopy(model), given)
    without_attention(model)
    torch.testing.assert_close(step(model, given)[0], expected)


def test_the_report_names_the_losses_that_are_ours() -> None:
    wanted = {
        "rt_detr": "vfl, boxes",
        "d_fine": "vfl, boxes",
        "deimv2": "mal, boxes",
        "lw_detr": "labels, boxes, cardinality",
        "rf_detr": "labels, boxes, cardinality",
        "grounding_dino": "boxes, cardinality",
    }
    for name, ours in wanted.items():
        found = dict(detr_fast.accelerate(case(name)[0]).replaced)["loss_function"]
        assert found == f"all decoder layers matched in one call, its losses {ours} replaced"


def test_a_changed_term_stays_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the loss, and the same loss with another gradient."""
    from transformers.loss.loss_rt_detr import RTDetrLoss

    def boxes(self: Any, *args: Any) -> dict[str, Tensor]:
        return {key: 2 * x for key, x in own_boxes(self, *args).items()}

    def vfl(self: Any, *args: Any) -> dict[str, Tensor]:
        return {key: 2 * x - x.detach() for key, x in own_vfl(self, *args).items()}

    own_boxes, own_vfl = RTDetrLoss.loss_boxes, RTDetrLoss.loss_labels_vfl
    monkeypatch.setattr(RTDetrLoss, "loss_boxes", boxes)
    assert "its losses vfl replaced" in str(detr_fast.accelerate(case("rt_detr")[0]))
    monkeypatch.setattr(RTDetrLoss, "loss_labels_vfl", vfl)
    assert "none of its losses replaced" in str(detr_fast.accelerate(case("rt_detr")[0]))


def own_loss(*args: Any, **kwargs: Any) -> None:
    """A user's loss."""


def test_a_loss_of_the_users_own_is_left_alone() -> None:
    model, _ = case("detr")
    model.loss_function = own_loss
    report = detr_fast.accelerate(model)
    assert report.skipped == [("loss_function", "it has a loss function of its own")]
    detr_fast.restore(model)
    assert model.loss_function is own_loss


def test_a_changed_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.loss import loss_deformable_detr, loss_rt_detr

    monkeypatch.setattr(loss_deformable_detr.DeformableDetrImageLoss, "loss_boxes", lambda *_: {})
    report = detr_fast.accelerate(case("deformable_detr")[0])
    assert ("loss_function", "its loss is not that of DETR as we know it") in report.skipped

    def forward(self, outputs, targets):
        return [tuple(x.flip(0) for x in pair) for pair in original(self, outputs, targets)]

    original = loss_rt_detr.RTDetrHungarianMatcher.forward
    monkeypatch.setattr(loss_rt_detr.RTDetrHungarianMatcher, "forward", forward)
    report = detr_fast.accelerate(case("rt_detr")[0])
    assert ("loss_function", "the costs of its RTDetrHungarianMatcher are unknown") in report.skipped
