"""DINO against IDEA-Research/DINO: outputs, denoising, matches, losses, gradients and more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.criterion import DINOCriterion
from detr_fast.models import DINO, DINOConfig
from detr_fast.models.backbones import backbone_in
from detr_fast.models.denoising import ContrastiveDenoising, Noise
from detr_fast.models.dino import inverse_sigmoid
from detr_fast.postprocess import postprocess_focal
from detr_fast.structures import PackedTargets, PaddedImages, Predictions
from tests.golden import case as golden
from tests.golden.case import Case
from tests.golden.test_golden_matcher import layers_of, matcher_of, targets_of

# What the cases suggest: absolute for outputs, relative to the largest entry for gradients.
LOGITS, BOXES, NOISE, PIXELS, COSTS, LOSSES, GRADIENTS = 1e-4, 2e-5, 1e-6, 0.02, 3e-4, 2e-5, 1e-3
# which the official code logs and never weighs
LOGGED = ("loss_xy", "loss_hw", "cardinality_error_dn")
TRAINING = ("", "zero1/", "zeroall/")


def dino(notes: Mapping[str, Any]) -> bool:
    return notes["source"].startswith("IDEA-Research/DINO")


def official_state(case: Case) -> dict[str, Tensor]:
    """Tensors with several names hold the values of the one that counts."""
    state = case.state_dict()
    return {name: state[case.notes["aliases"].get(name, name)] for name in state}


@cache
def model_of(name: str) -> DINO:
    case = golden.load(name)
    state = official_state(case)
    # the cases describe these in words
    described = {"backbone": backbone_in(state), "position_embedding": "sine"}
    config = DINOConfig.from_official_args(case.config | described)
    model = DINO(config).eval()
    assert load_state_dict(model, state) == LoadReport()
    return model


@cache
def predictions_of(name: str) -> Predictions:
    with torch.no_grad():
        return model_of(name)(golden.load(name).images())


def noise_of(case: Case, group: str, targets: PackedTargets) -> Noise:
    """The recorded draws; new labels were drawn for those alone that chance replaces."""
    shape = (-1, len(targets.labels))
    draws = {key: case[f"{group}dn/draw/{key}"] for key in ("label_p", "new_label", "box_sign", "box_part")}
    chosen = draws["label_p"] < case.config["dn_label_noise_ratio"] / 2
    labels = torch.zeros(chosen.shape, dtype=torch.int64).masked_scatter(chosen, draws["new_label"])
    return Noise(
        draws["label_p"].view(shape),
        labels.view(shape),
        (draws["box_sign"] * 2 - 1).view(*shape, 4),
        draws["box_part"].view(*shape, 4),
    )


def trained(name: str, group: str) -> tuple[Predictions, PackedTargets]:
    """A forward pass as in training, the recorded noise applied."""
    case, model = golden.load(name), model_of(name)
    targets = PackedTargets.from_list(targets_of(case, group))
    noise = noise_of(case, group, targets) if sum(targets.num_targets) else None
    try:
        return model.train()(case.images(), targets, noise), targets
    finally:
        model.eval()


def criterion_of(case: Case) -> DINOCriterion:
    config = case.config
    weights = case.notes["loss_weights"]
    return DINOCriterion(
        config["num_classes"], matcher_of(case), weights, config["focal_alpha"], config["focal_gamma"]
    )


def same(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "group"), golden.find(dino))
def test_outputs(name: str, group: str) -> None:
    case, found = golden.load(name), predictions_of(name)
    layers = layers_of(case, group, "out", "aux")
    assert len(found.logits) == len(layers)
    for layer, prefix in enumerate(layers):
        same(found.logits[layer], case[f"{prefix}pred_logits"], LOGITS)
        same(found.boxes[layer], case[f"{prefix}pred_boxes"], BOXES)
    assert found.encoder is not None
    same(found.encoder.logits[0], case[f"{group}interm/pred_logits"], LOGITS)
    same(found.encoder.boxes[0], case[f"{group}interm/pred_boxes"], BOXES)


@pytest.mark.parametrize(("name", "group"), golden.find(dino, ("mid/",)))
@torch.no_grad()
def test_stages(name: str, group: str) -> None:
    """Projected features, positions, masks, encoded image and decoder states."""
    case, model = golden.load(name), model_of(name)
    features, positions, levels = model.feature_levels(PaddedImages.from_list(case.images()))
    assert levels.shapes == [tuple(shape) for shape in case.notes["level_shapes_hw"]]
    assert levels.padding is not None
    masks = levels.padding.split([h * w for h, w in levels.shapes], dim=1)
    for level, (x, position, mask) in enumerate(zip(features, positions, masks, strict=True)):
        same(x.mean((2, 3)), case[f"{group}src_mean/{level}"], LOGITS)
        same(x.std((2, 3), correction=0), case[f"{group}src_std/{level}"], LOGITS)
        same(position[:, ::15], case[f"{group}pos/{level}"], LOGITS)
        assert torch.equal(mask, case[f"{group}mask/{level}"].bool().flatten(1))
    same(levels.valid_ratios, case[f"{group}valid_ratios"], 1e-6)
    memory = model.transformer.encode(features, positions, levels)
    same(memory[:, :: case.notes["memory_every"]], case[f"{group}memory"], LOGITS)
    best = model.transformer.propose(memory, levels, model.config.num_queries)
    same(best.states, case["interm/hs"], LOGITS)
    content = model.transformer.tgt_embed.weight.expand(len(memory), -1, -1)
    states, _ = model.transformer.decoder(content, best.boxes, memory, levels, None, model.bbox_embed)
    same(states, case[f"{group}hs"], LOGITS)


@pytest.mark.parametrize(("name", "group"), golden.find(dino, TRAINING))
def test_denoising(name: str, group: str) -> None:
    """Groups, noise, queries and mask, then what the model makes of them."""
    case, model = golden.load(name), model_of(name)
    targets = PackedTargets.from_list(targets_of(case, group))
    groups = model.denoising.groups(targets)
    if not int(case[f"{group}dn/pad_size"]):
        assert groups is None
        assert trained(name, group)[0].denoised is None
        return
    assert groups is not None
    assert (groups.queries, groups.count) == tuple(
        int(case[f"{group}dn/{key}"]) for key in ("pad_size", "num_dn_group")
    )
    noise = noise_of(case, group, targets)
    labels, boxes = model.denoising.noised(targets, noise)
    assert torch.equal(labels.flatten(), case[f"{group}dn/noised_labels"])
    same(boxes.flatten(0, 1), case[f"{group}dn/noised_boxes"], NOISE)
    assert torch.equal(groups.index(targets).flatten(), case[f"{group}dn/query_index"])
    if f"{group}dn/attn_mask" not in case:
        return
    content, boxes = model.denoising.queries(targets, groups, noise, model.label_enc.weight)
    same(content, case[f"{group}dn/input_query_label"], LOGITS)
    same(inverse_sigmoid(boxes, 1e-3), case[f"{group}dn/input_query_bbox"], LOGITS)
    blocked = ~groups.attend(model.config.num_queries, content.device)[0]
    assert torch.equal(blocked, case[f"{group}dn/attn_mask"].bool())
    found = trained(name, group)[0].denoised
    assert found is not None
    for layer, prefix in enumerate(layers_of(case, group, "dn/out", "dn/aux")):
        same(found.logits[layer], case[f"{prefix}pred_logits"], LOGITS)
        same(found.boxes[layer], case[f"{prefix}pred_boxes"], BOXES)
    for image, restored in enumerate(groups.index(targets)[::2].split(targets.num_targets, dim=1)):
        assert torch.equal(restored.flatten(), case[f"{group}dn/match/{image}/src"])


@pytest.mark.parametrize(("name", "group"), golden.find(dino, ("dn_rule/",)))
def test_number_of_groups(name: str, group: str) -> None:
    for number, *counts, official, queries in golden.load(name)[f"{group}table"].tolist():
        targets = PackedTargets.from_list(
            [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.rand(n, 4)} for n in counts]
        )
        groups = ContrastiveDenoising(number).groups(targets)
        assert (0 if groups is None else groups.queries) == queries
        assert groups is None or groups.count == official


@pytest.mark.parametrize(("name", "group"), golden.find(dino, TRAINING))
def test_matches(name: str, group: str) -> None:
    case, found, matcher = golden.load(name), predictions_of(name), matcher_of(golden.load(name))
    targets = PackedTargets.from_list(targets_of(case, group))
    assert found.encoder is not None
    sides = (
        (found, layers_of(case, group, "match", "match_aux")),
        (found.encoder, [f"{group}match_interm/"]),
    )
    for predictions, layers in sides:
        matches = matcher.match(predictions, targets)
        for layer, prefix in enumerate(layers):
            for image, (query, target) in enumerate(matches.as_indices(targets, layer)):
                assert torch.equal(query, case[f"{prefix}{image}/src"])
                assert torch.equal(target, case[f"{prefix}{image}/tgt"])


@pytest.mark.parametrize(
    ("name", "group"), golden.find(dino, ("eval/loss/", *(f"{group}loss/" for group in TRAINING)))
)
@pytest.mark.parametrize("form", ["stacked", "dict"])
def test_losses(name: str, group: str, form: str) -> None:
    case = golden.load(name)
    if group.startswith("eval/"):
        predictions, targets = predictions_of(name), PackedTargets.from_list(targets_of(case, ""))
    else:
        predictions, targets = trained(name, group.removesuffix("loss/"))
    criterion = criterion_of(case)
    losses = criterion(predictions if form == "stacked" else predictions.as_dict(), targets)
    if f"{group}total" in case:
        losses["total"] = criterion.total(losses)
    assert losses.keys() == {loss for loss in case.names(group) if not loss.startswith(LOGGED)}
    for loss, value in losses.items():
        assert value.item() == pytest.approx(case[group + loss].item(), rel=LOSSES, abs=1e-5), loss


@pytest.mark.parametrize(("name", "group"), golden.find(dino, ("gradnorm/", "zeroall/gradnorm/")))
def test_gradients(name: str, group: str) -> None:
    case, model = golden.load(name), model_of(name)
    criterion = criterion_of(case)
    model.zero_grad()
    criterion.total(criterion(*trained(name, group.removesuffix("gradnorm/")))).backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    norms = {parameter: case[group + parameter] for parameter in case.names(group)}
    # the cases name a tensor once, whichever of its names that is
    found = {parameter for parameter in parameters.values() if parameter.grad is not None}
    assert found == {parameters[parameter] for parameter in norms}
    assert len(found) == len(norms)
    noise = 1e-6 * max(float(norm[1]) for norm in norms.values())
    for parameter, (total, norm) in norms.items():
        grad = parameters[parameter].grad.double()
        assert float(grad.norm()) == pytest.approx(float(norm), rel=GRADIENTS, abs=noise), parameter
        slack = GRADIENTS * float(norm) * grad.numel() ** 0.5 + noise
        assert float(grad.sum()) == pytest.approx(float(total), abs=slack), parameter
        if f"grad/{parameter}" in case and group == "gradnorm/":
            expected = case[f"grad/{parameter}"].double()
            same(grad, expected, GRADIENTS * float(expected.abs().max()) + noise)


@pytest.mark.parametrize(("name", "group"), golden.find(dino, ("post/",)))
def test_detections(name: str, group: str) -> None:
    case = golden.load(name)
    found = postprocess_focal(
        predictions_of(name), case[f"{group}target_sizes"], top=case.config["num_select"]
    )
    for image, detections in enumerate(found):
        prefix = f"{group}{image}/"
        assert torch.equal(detections["labels"], case[f"{prefix}labels"])
        same(detections["scores"], case[f"{prefix}scores"], LOGITS)
        same(detections["boxes"], case[f"{prefix}boxes"], PIXELS)


@pytest.mark.parametrize(("name", "group"), golden.find(dino))
def test_state_dict_goes_back(name: str, group: str) -> None:
    """What is saved carries the official names and the loaded values."""
    official, saved = official_state(golden.load(name)), model_of(name).state_dict()
    assert saved.keys() == official.keys()
    for entry, value in saved.items():
        assert torch.equal(value, official[entry]), entry


@pytest.mark.parametrize(("name", "group"), golden.find(dino))
def test_config_from_state_dict(name: str, group: str) -> None:
    config = model_of(name).config
    shapeless = (
        "nheads", "activation", "dilation", "pe_temperatureH", "pe_temperatureW", "pe_offset", "dn_number",
        "dn_label_noise_ratio", "dn_box_noise_scale", "dn_limit_groups", "aux_loss",
    )  # fmt: skip
    known = {field: getattr(config, field) for field in shapeless}
    if not config.embed_init_tgt:
        known["num_queries"] = config.num_queries
    assert DINOConfig.from_state_dict(official_state(golden.load(name)), **known) == config
