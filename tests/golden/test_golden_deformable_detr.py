"""Deformable DETR against fundamentalvision/Deformable-DETR: outputs, matches, losses, gradients and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.criterion import FocalSetCriterion
from detr_fast.models import DeformableDETR, DeformableDETRConfig
from detr_fast.models.backbones import backbone_in
from detr_fast.postprocess import postprocess_focal
from detr_fast.structures import PackedTargets, PaddedImages, Predictions
from tests.golden import case as golden
from tests.golden.case import Case
from tests.golden.test_golden_matcher import layers_of, matcher_of, targets_of

# What the cases suggest: absolute for outputs, relative to the largest entry for gradients.
OUTPUTS, PIXELS, LOSSES, GRADIENTS, BACKBONE_GRADIENTS = 1e-4, 0.05, 2e-5, 1e-3, 2e-3


def deformable_detr(notes: Mapping[str, Any]) -> bool:
    return notes["source"].startswith("fundamentalvision/Deformable-DETR") and "enc_layers" in notes["config"]


def two_stage(notes: Mapping[str, Any]) -> bool:
    return deformable_detr(notes) and notes["config"]["two_stage"]


@cache
def model_of(name: str) -> DeformableDETR:
    case = golden.load(name)
    # the cases describe the backbone and dropout in words
    names = {field.name for field in fields(DeformableDETRConfig)} - {"backbone", "dropout"}
    settings = {key: value for key, value in case.config.items() if key in names}
    state = case.state_dict()
    model = DeformableDETR(DeformableDETRConfig(backbone=backbone_in(state), **settings)).eval()
    assert load_state_dict(model, state) == LoadReport()
    return model


@cache
def predictions_of(name: str) -> Predictions:
    with torch.no_grad():
        return model_of(name)(golden.load(name).images())


def criterion_of(case: Case) -> FocalSetCriterion:
    config = case.config
    return FocalSetCriterion(
        config["num_classes"],
        matcher_of(case),
        case.notes["loss_weights"],
        config["focal_alpha"],
        config["focal_gamma"],
    )


def same(found: Tensor, expected: Tensor, atol: float = OUTPUTS) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr))
def test_outputs(name: str, group: str) -> None:
    case, found = golden.load(name), predictions_of(name)
    layers = layers_of(case, group, "out", "aux")
    assert len(found.logits) == len(layers)
    for layer, prefix in enumerate(layers):
        same(found.logits[layer], case[f"{prefix}pred_logits"])
        same(found.boxes[layer], case[f"{prefix}pred_boxes"])


@pytest.mark.parametrize(("name", "group"), golden.find(two_stage))
def test_proposals(name: str, group: str) -> None:
    case, found = golden.load(name), predictions_of(name).encoder
    assert found is not None
    same(found.logits[0], case[f"{group}enc/pred_logits"])
    same(found.boxes[0], case[f"{group}enc/pred_boxes"])
    assert torch.equal((found.boxes[0] == 1).all(-1), case[f"{group}enc/invalid"].bool())
    best = found.logits[0, ..., 0].topk(case.config["num_queries"], dim=1).indices
    assert torch.equal(best, case[f"{group}enc/topk_index"])
    chosen = found.boxes[0].gather(1, best[..., None].expand(-1, -1, 4))
    same(chosen, case[f"{group}mid/init_reference"])


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr, ("mid/",)))
@torch.no_grad()
def test_stages(name: str, group: str) -> None:
    """Projected features, masks, encoded image, references and decoder states."""
    case, model = golden.load(name), model_of(name)
    transformer = model.transformer
    features, positions, levels = model.feature_levels(PaddedImages.from_list(case.images()))
    assert levels.shapes == [tuple(shape) for shape in case.notes["level_shapes_hw"]]
    assert levels.padding is not None
    masks = levels.padding.split([h * w for h, w in levels.shapes], dim=1)
    for level, (x, mask) in enumerate(zip(features, masks, strict=True)):
        same(x.mean((2, 3)), case[f"{group}src_mean/{level}"])
        same(x.std((2, 3), correction=0), case[f"{group}src_std/{level}"])
        assert torch.equal(mask, case[f"{group}mask/{level}"].bool().flatten(1))
    same(levels.valid_ratios, case[f"{group}valid_ratios"], atol=1e-6)
    memory = transformer.encode(features, positions, levels)
    same(memory[:, :: case.notes["memory_every"]], case[f"{group}memory"])
    if case.config["two_stage"]:
        proposals = transformer.propose(memory, levels, model.class_embed[-1], model.bbox_embed[-1])[1]
        best = case["enc/topk_index"][..., None].expand(-1, -1, 4)
        x, position, reference = transformer.proposed_queries(proposals.gather(1, best), memory.dtype)
    else:
        x, position, reference = transformer.learned_queries(model.query_embed.weight, len(memory))
    same(reference, case[f"{group}init_reference"])
    states, boxes = transformer.decoder(x, position, reference, memory, levels, model.bbox_embed)
    same(states, case[f"{group}hs"])
    after = boxes if case.config["with_box_refine"] else reference.expand(len(boxes), -1, -1, -1)
    same(after, case[f"{group}inter_references"])


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr))
def test_matches(name: str, group: str) -> None:
    case, found, matcher = golden.load(name), predictions_of(name), matcher_of(golden.load(name))
    targets = PackedTargets.from_list(targets_of(case, group))
    sides = [(found, targets, layers_of(case, group, "match", "match_aux"))]
    if found.encoder is not None:
        objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets_of(case, group)]
        sides.append((found.encoder, PackedTargets.from_list(objects), [f"{group}match_enc/"]))
    for predictions, wanted, layers in sides:
        matches = matcher.match(predictions, wanted)
        for layer, prefix in enumerate(layers):
            for image, (query, target) in enumerate(matches.as_indices(wanted, layer)):
                assert torch.equal(query, case[f"{prefix}{image}/src"])
                assert torch.equal(target, case[f"{prefix}{image}/tgt"])


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr, ("loss/",)))
@pytest.mark.parametrize("form", ["stacked", "dict"])
def test_losses(name: str, group: str, form: str) -> None:
    case, predictions = golden.load(name), predictions_of(name)
    criterion = criterion_of(case)
    losses = criterion(predictions if form == "stacked" else predictions.as_dict(), targets_of(case, ""))
    losses["total"] = criterion.total(losses)
    assert losses.keys() == set(case.names(group))
    for loss, value in losses.items():
        torch.testing.assert_close(value, case[group + loss], rtol=LOSSES, atol=1e-5)


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr, ("gradnorm/",)))
def test_gradients(name: str, group: str) -> None:
    case, model = golden.load(name), model_of(name)
    criterion = criterion_of(case)
    model.zero_grad()
    criterion.total(criterion(model(case.images()), targets_of(case, ""))).backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    norms = {parameter: case[group + parameter] for parameter in case.names(group)}
    # the cases name a tensor once, whichever of its names that is
    trained = {parameter for parameter in parameters.values() if parameter.grad is not None}
    assert trained == {parameters[parameter] for parameter in norms}
    assert len(trained) == len(norms)
    noise = 1e-6 * max(float(norm[1]) for norm in norms.values())
    for parameter, (total, norm) in norms.items():
        grad = parameters[parameter].grad.double()
        rel = BACKBONE_GRADIENTS if parameter.startswith("backbone.") else GRADIENTS
        assert float(grad.norm()) == pytest.approx(float(norm), rel=rel, abs=noise), parameter
        slack = rel * float(norm) * grad.numel() ** 0.5 + noise
        assert float(grad.sum()) == pytest.approx(float(total), abs=slack), parameter
        if f"grad/{parameter}" in case:
            expected = case[f"grad/{parameter}"].double()
            same(grad, expected, atol=rel * float(expected.abs().max()) + noise)


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr, ("post/",)))
def test_detections(name: str, group: str) -> None:
    case = golden.load(name)
    for image, found in enumerate(postprocess_focal(predictions_of(name), case[f"{group}target_sizes"])):
        prefix = f"{group}{image}/"
        assert torch.equal(found["labels"], case[f"{prefix}labels"])
        same(found["scores"], case[f"{prefix}scores"])
        same(found["boxes"], case[f"{prefix}boxes"], atol=PIXELS)


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr))
def test_state_dict_goes_back(name: str, group: str) -> None:
    """What is saved carries the official names and, tensors with two names aside, the loaded values."""
    case, saved = golden.load(name), model_of(name).state_dict()
    official, aliases = case.state_dict(), case.notes["aliases"]
    assert saved.keys() == official.keys()
    for entry, value in saved.items():
        assert torch.equal(value, official[aliases.get(entry, entry)]), entry


@pytest.mark.parametrize(("name", "group"), golden.find(deformable_detr))
def test_config_from_state_dict(name: str, group: str) -> None:
    config = model_of(name).config
    guessed = DeformableDETRConfig.from_state_dict(
        golden.load(name).state_dict(),
        **{
            field: getattr(config, field)
            for field in ("nheads", "num_queries", "activation", "dilation", "aux_loss")
        },
    )
    assert guessed == config
