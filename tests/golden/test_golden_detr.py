"""DETR, with masks or without, against facebookresearch/detr: from outputs to gradients and detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.criterion import SetCriterion
from detr_fast.masks import resize_masks
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig, DETRSegm, DETRSegmConfig
from detr_fast.postprocess import postprocess_detection
from detr_fast.structures import PackedTargets, PaddedImages, Predictions
from tests.golden import case as golden
from tests.golden.case import Case


@dataclass(frozen=True)
class Tolerance:
    """What the cases suggest: absolute, for losses and gradients relative."""

    logits: float = 3e-5
    boxes: float = 3e-6
    masks: float = 4e-5
    features: float = 1e-4
    costs: float = 5e-5
    losses: float = 1e-5
    post_boxes: float = 2e-3
    scores: float = 3e-6
    gradients: float = 1e-4


PLAIN = Tolerance()
SCALED = Tolerance(
    logits=2e-3, boxes=2e-4, costs=3e-3, losses=2e-4, post_boxes=0.1, scores=2e-4, gradients=2e-3
)
# segmentation models are scaled further
SCALED_MASKS = Tolerance(
    logits=3e-3,
    boxes=3e-4,
    masks=3e-3,
    costs=5e-3,
    losses=3e-4,
    post_boxes=0.15,
    scores=3e-4,
    gradients=4e-3,
)
# relative: rounding can push a value of the backbone over the kink of a ReLU
KINKS = 1e-3


def detr(notes: Mapping[str, Any]) -> bool:
    return notes["source"] == "facebookresearch/detr" and "backbone" in notes["config"]


def detection(notes: Mapping[str, Any]) -> bool:
    return detr(notes) and not notes["config"]["masks"]


def is_scaled(group: str) -> bool:
    return group in ("scaled/", "single/", "shift/")


def tolerance(case: Case, group: str) -> Tolerance:
    if not is_scaled(group):
        return PLAIN
    return SCALED_MASKS if case.config["masks"] else SCALED


@cache
def model_of(name: str, scaled: bool) -> DETR | DETRSegm:
    case = golden.load(name)
    # the cases describe dropout in words, and evaluate without it
    names = {field.name for field in fields(DETRConfig)} - {"dropout"}
    sizes = {key: value for key, value in case.config.items() if key in names}
    model = DETRSegm(DETRSegmConfig(**sizes)) if case.config["masks"] else DETR(DETRConfig(**sizes))
    assert load_state_dict(model, case.state_dict(scaled)) == LoadReport()
    return model.eval()


def predict(name: str, group: str) -> Predictions:
    case = golden.load(name)
    images = case.images()
    if group == "single/":
        images = [images[case.config["single_image_index"]]]
    return model_of(name, is_scaled(group))(images)


@cache
def predictions_of(name: str, group: str) -> Predictions:
    with torch.no_grad():
        found = predict(name, group)
    if group == "shift/":
        found.logits[..., -1] += golden.load(name).config["shift"]
    return found


def targets_of(case: Case, group: str) -> list[dict[str, Tensor]]:
    targets = []
    while f"target/{len(targets)}/boxes" in case:
        prefix = f"target/{len(targets)}/"
        targets.append({key: case[prefix + key] for key in ("boxes", "labels")})
        if case.config["masks"]:
            targets[-1]["masks"] = case.bits(f"{prefix}masks")
    first_empty = {"zeroall/": 0, "zero1/": len(targets) - 1}.get(group, len(targets))
    return targets[:first_empty] + [{k: v[:0] for k, v in t.items()} for t in targets[first_empty:]]


def layer_names(case: Case, group: str, last: str, earlier: str) -> list[str]:
    """The array prefix of each decoder layer for which the case has arrays, counted from the last."""
    names = [f"{group}{last}/"]
    layers = case.config["dec_layers"] - 1
    return names + [
        f"{group}{earlier}/{i}/" for i in reversed(range(layers)) if case.names(f"{group}{earlier}/{i}/")
    ]


def matcher_of(case: Case) -> HungarianMatcher:
    return HungarianMatcher(**case.config["matcher"])


def criterion_of(case: Case) -> SetCriterion:
    settings = case.config["criterion"]
    return SetCriterion(
        case.config["num_classes"],
        matcher_of(case),
        settings["weight_dict"],
        settings["eos_coef"],
        settings["losses"],
    )


OUTPUT_GROUPS = ("out/", "scaled/out/", "single/out/")


@pytest.mark.parametrize(("name", "group"), golden.find(detr, OUTPUT_GROUPS))
def test_outputs(name: str, group: str) -> None:
    case, group = golden.load(name), group.removesuffix("out/")
    limit, found = tolerance(case, group), predictions_of(name, group)
    for back, prefix in enumerate(layer_names(case, group, "out", "aux"), start=1):
        torch.testing.assert_close(
            found.logits[-back], case[f"{prefix}pred_logits"], rtol=0, atol=limit.logits
        )
        torch.testing.assert_close(found.boxes[-back], case[f"{prefix}pred_boxes"], rtol=0, atol=limit.boxes)
    assert (found.masks is not None) == case.config["masks"]
    if found.masks is not None:
        torch.testing.assert_close(found.masks[0], case[f"{group}out/pred_masks"], rtol=0, atol=limit.masks)


@pytest.mark.parametrize(("name", "group"), golden.find(detection, ("mid/",)))
@torch.no_grad()
def test_stages(name: str, group: str) -> None:
    """Backbone features, position encoding, encoded image and decoder states."""
    case, model = golden.load(name), model_of(name, False)
    images = PaddedImages.from_list(case.images())
    features = model.backbone[0](images.tensors)[-1]
    mask = resize_masks(images.mask, features.shape[2:])
    position = model.backbone[1](mask)
    hs, memory = model.transformer(model.input_proj(features), model.query_embed.weight, position, mask)
    flat = features.double().flatten(1)
    found = {
        "feature_stats": torch.stack((flat.sum(1), flat.norm(dim=1)), dim=1),
        "feature_mask": mask.long(),
        "valid_hw": torch.stack([(~images.mask).any(side).sum(1) for side in (2, 1)], dim=1),
        "pos": position,
        "memory": memory,
        "hs": hs,
    }
    for array in case.names(group):
        if array.startswith("feature_first"):
            value = features[:, : int(array.removeprefix("feature_first"))]
        else:
            value = found[array]
        rtol = 1e-5 if array == "feature_stats" else 0
        torch.testing.assert_close(value, case[group + array], rtol=rtol, atol=PLAIN.features)


MATCH_GROUPS = ("match/", "scaled/match/", "shift/match/", "zero1/match/", "zeroall/match/")


@pytest.mark.parametrize(("name", "group"), golden.find(detr, MATCH_GROUPS))
def test_matches(name: str, group: str) -> None:
    """The official call and the one for all layers; costs and their sums."""
    case, group = golden.load(name), group.removesuffix("match/")
    limit, found, targets = tolerance(case, group), predictions_of(name, group), targets_of(case, group)
    packed, matcher = PackedTargets.from_list(targets), matcher_of(case)
    matches = matcher.match(found, packed)
    costs = matcher.costs(found, packed)
    official = found.as_dict()
    for back, prefix in enumerate(layer_names(case, group, "match", "match_aux"), start=1):
        outputs = official if back == 1 else official["aux_outputs"][-back + 1]
        indices = matcher(outputs, targets)
        total = 0.0
        for image, (query, target) in enumerate(matches.as_indices(packed, layer=-back)):
            for mine, of_call, array in zip((query, target), indices[image], ("src", "tgt"), strict=True):
                assert torch.equal(mine, case[f"{prefix}{image}/{array}"])
                assert torch.equal(of_call, mine)
            cost = costs[-back].split(packed.num_targets)[image].T
            torch.testing.assert_close(cost, case[f"{prefix}{image}/cost_matrix"], rtol=0, atol=limit.costs)
            matched = cost[query, target].sum()
            atol = limit.costs * max(1, len(target))
            torch.testing.assert_close(matched, case[f"{prefix}{image}/cost"], rtol=0, atol=atol)
            total += float(matched)
        atol = limit.costs * max(1, sum(packed.num_targets))
        assert total == pytest.approx(float(case[f"{prefix}total_cost"]), abs=atol, rel=1e-6)


LOSS_GROUPS = ("loss/", "scaled/loss/", "shift/loss/", "zero1/loss/", "zeroall/loss/")


@pytest.mark.parametrize(("name", "group"), golden.find(detr, LOSS_GROUPS))
@pytest.mark.parametrize("form", ["stacked", "dict"])
def test_losses(name: str, group: str, form: str) -> None:
    case, group = golden.load(name), group.removesuffix("loss/")
    predictions, criterion = predictions_of(name, group), criterion_of(case)
    outputs = predictions if form == "stacked" else predictions.as_dict()
    losses = criterion(outputs, targets_of(case, group))
    expected = {loss: case[f"{group}loss/{loss}"] for loss in case.names(f"{group}loss/")}
    assert losses.keys() == expected.keys()
    for loss, value in expected.items():
        rtol = 0 if "error" in loss else tolerance(case, group).losses
        torch.testing.assert_close(losses[loss], value, rtol=rtol, atol=1e-5 if "error" in loss else 1e-7)
    total, expected_total = criterion.total(losses), case[f"{group}loss_total"]
    torch.testing.assert_close(total, expected_total, rtol=tolerance(case, group).losses, atol=0)


@pytest.mark.parametrize(("name", "group"), golden.find(detr, ("gradnorm/", "scaled/gradnorm/")))
def test_gradients(name: str, group: str) -> None:
    case, group = golden.load(name), group.removesuffix("gradnorm/")
    model, criterion, limit = model_of(name, is_scaled(group)), criterion_of(case), tolerance(case, group)
    model.zero_grad()
    criterion.total(criterion(predict(name, group), targets_of(case, group))).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {parameter: case[f"{group}gradnorm/{parameter}"] for parameter in case.names(f"{group}gradnorm/")}
    assert grads.keys() == norms.keys()
    noise = 1e-6 * max(float(norm[1]) for norm in norms.values())
    zero = []
    if not case.config["pre_norm"]:
        # queries enter the first self-attention as zeros, so its gradients are rounding noise
        zero.append("transformer.decoder.layers.0.self_attn.in_proj_weight")
    if case.config["masks"]:
        # a norm of one channel a group removes what is added to the channel
        zero.append("mask_head.lay5.bias")
    for parameter in [name for name in grads if name.endswith(tuple(zero))]:
        assert float(grads.pop(parameter).norm()) <= noise
    for parameter, grad in grads.items():
        total, norm = norms[parameter].tolist()
        rel = max(limit.gradients, KINKS) if "backbone." in parameter else limit.gradients
        assert float(grad.double().norm()) == pytest.approx(norm, rel=rel), parameter
        slack = rel * norm * grad.numel() ** 0.5
        assert float(grad.double().sum()) == pytest.approx(total, abs=slack), parameter
    for parameter in set(case.names(f"{group}grad/")) & grads.keys():
        expected = case[f"{group}grad/{parameter}"]
        atol = limit.gradients * float(expected.abs().max())
        torch.testing.assert_close(grads[parameter], expected, rtol=0, atol=atol)
        if parameter.endswith("in_proj_bias"):
            # a constant added to all keys changes no attention weight
            assert float(grads[parameter].chunk(3)[1].abs().max()) <= noise


@pytest.mark.parametrize(("name", "group"), golden.find(detr, ("post/", "scaled/post/", "shift/post/")))
def test_detections(name: str, group: str) -> None:
    case, group = golden.load(name), group.removesuffix("post/")
    limit, predictions = tolerance(case, group), predictions_of(name, group)
    sizes = case["target_sizes" if "target_sizes" in case else "orig_sizes"]
    for image, found in enumerate(postprocess_detection(predictions, sizes)):
        prefix = f"{group}post/{image}/"
        assert torch.equal(found["labels"], case[f"{prefix}labels"])
        torch.testing.assert_close(found["scores"], case[f"{prefix}scores"], rtol=0, atol=limit.scores)
        torch.testing.assert_close(found["boxes"], case[f"{prefix}boxes"], rtol=0, atol=limit.post_boxes)


@pytest.mark.parametrize(("name", "group"), golden.find(detr))
def test_config_from_state_dict(name: str, group: str) -> None:
    config = model_of(name, False).config
    guessed = type(config).from_state_dict(
        golden.load(name).state_dict(),
        nheads=config.nheads,
        dilation=config.dilation,
        activation=config.activation,
        aux_loss=config.aux_loss,
    )
    assert guessed == config
