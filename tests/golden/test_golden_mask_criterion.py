"""Matches, losses and gradients of mask classifiers against Mask2Former's and MaskFormer's official code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.criterion import MaskFormerCriterion, MaskSetCriterion, PointDraws, mask_weights
from detr_fast.criterion.mask_losses import Focal, Matched, RowLosses
from detr_fast.criterion.points import uncertain_points
from detr_fast.matcher import MaskMatcher
from detr_fast.ops.mask_match_cost import mask_match_cost
from detr_fast.ops.point_sample import point_sample
from detr_fast.structures import MaskPredictions, PackedTargets
from tests.golden.case import Case, find, load

COST_ATOL = 1e-3
LOSS_RTOL = 1e-4
GROUPS = ("", "empty_second/")


def has_mask_losses(notes: Mapping[str, Any]) -> bool:
    return "no_object_weight" in notes.get("config", {}) and "prediction_heads_in_loss_order" in notes


def has_matched_losses(notes: Mapping[str, Any]) -> bool:
    return {"focal", "num_masks"} <= notes.get("config", {}).keys()


CASES = find(has_mask_losses, GROUPS)
POINT_CASES = [p for p in CASES if "num_points" in load(p.values[0]).config]


def heads_of(case: Case, group: str) -> list[str]:
    """Of the names of arrays, in the order of the layers: the last one last. A group has the last alone."""
    if group:
        return [""]
    heads = case.notes["prediction_heads_in_loss_order"]
    return [f"{head}/" for head in sorted(heads, key=lambda head: (head == "final", head))]


def predictions_of(case: Case, group: str) -> MaskPredictions:
    prefixes = [
        "out/" if head in ("", "final/") else head.replace("aux_", "aux/") for head in heads_of(case, group)
    ]
    logits, masks = (
        torch.stack([case[f"{prefix}{name}"] for prefix in prefixes])
        for name in ("pred_logits", "pred_masks")
    )
    return MaskPredictions(logits, masks)


def targets_of(case: Case, group: str) -> PackedTargets:
    """Padded as the images were; in the group the second image has none."""
    targets = []
    while f"target/{len(targets)}/labels" in case:
        kept = slice(0) if group and targets else slice(None)
        labels = case[f"target/{len(targets)}/labels"][kept]
        masks = case[f"target/{len(targets)}/masks"][kept].bool()
        targets.append({"labels": labels, "boxes": torch.zeros(len(labels), 4), "masks": masks})
    return PackedTargets.from_list(targets, case.config.get("padded_size"))


def matcher_of(case: Case) -> MaskMatcher:
    weights = case.config["matcher_cost_weights"]
    if "num_points" in case.config:
        return MaskMatcher(
            weights["class"], weights["mask"], weights["dice"], num_points=case.config["num_points"]
        )
    return MaskMatcher(
        weights["class"],
        weights["mask_focal"],
        weights["dice"],
        num_points=0,
        mask_cost="focal",
        alpha=case.config["focal_alpha"],
        gamma=case.config["focal_gamma"],
    )


def match_points(case: Case, group: str) -> Tensor | None:
    """[L, B, P, 2], as recorded."""
    if "num_points" not in case.config:
        return None
    images = len(targets_of(case, group))
    return torch.stack(
        [
            torch.cat([case[f"{group}match/{head}{image}/point_coords"] for image in range(images)])
            for head in heads_of(case, group)
        ]
    )


def in_target_order(case: Case, group: str, array: str) -> Tensor:
    """[L, sumT, P, 2] points of every mask; the case has those of an image by ascending query."""
    layers = []
    for head in heads_of(case, group):
        images = range(len(targets_of(case, group)))
        orders = [
            case[f"{group}match/{head}{image}/tgt"]
            for image in images
            if f"{group}match/{head}{image}/tgt" in case
        ]
        by_image = case[f"{group}points/{head}{array}"].split([len(order) for order in orders])
        layers.append(
            torch.cat([points[order.argsort()] for points, order in zip(by_image, orders, strict=True)])
        )
    return torch.stack(layers)


def draws_of(case: Case, group: str) -> PointDraws:
    points = match_points(case, group)
    assert points is not None
    return PointDraws(
        points, in_target_order(case, group, "oversampled"), in_target_order(case, group, "random")
    )


def losses_of(case: Case, group: str, predictions: MaskPredictions) -> tuple[dict[str, Tensor], Tensor]:
    """All losses, and their weighted total."""
    config, targets = case.config, targets_of(case, group)
    weights = [config["loss_weights"][name] for name in ("loss_ce", "loss_mask", "loss_dice")]
    shared = (
        config["num_classes"],
        matcher_of(case),
        mask_weights(len(predictions.logits), *weights),
        config["no_object_weight"],
    )
    if "num_points" not in config:
        criterion = MaskFormerCriterion(*shared, alpha=config["focal_alpha"], gamma=config["focal_gamma"])
        losses = criterion(predictions, targets)
        return losses, criterion.total(losses)
    criterion = MaskSetCriterion(
        *shared,
        num_points=config["num_points"],
        oversample_ratio=config["oversample_ratio"],
        importance_ratio=config["importance_sample_ratio"],
    )
    losses = criterion(predictions, targets, draws=draws_of(case, group))
    return losses, criterion.total(losses)


@pytest.mark.parametrize(("name", "group"), CASES)
def test_matches(name: str, group: str) -> None:
    case = load(name)
    predictions, targets = predictions_of(case, group), targets_of(case, group)
    matches = matcher_of(case).match(predictions, targets, match_points(case, group))
    for layer, head in enumerate(heads_of(case, group)):
        for image, (query, target) in enumerate(matches.as_indices(targets, layer)):
            if f"{group}match/{head}{image}/src" in case:
                assert torch.equal(query, case[f"{group}match/{head}{image}/src"])
                assert torch.equal(target, case[f"{group}match/{head}{image}/tgt"])
            else:
                assert not len(query)


@pytest.mark.parametrize(("name", "group"), CASES)
def test_costs(name: str, group: str) -> None:
    case, matcher = load(name), matcher_of(load(name))
    predictions, targets, points = (
        predictions_of(case, group),
        targets_of(case, group),
        match_points(case, group),
    )
    assert targets.masks is not None
    for layer, head in enumerate(heads_of(case, group)):
        masks = predictions.masks[layer]
        if points is None:
            values = masks.flatten(2)
            wanted = F.interpolate(targets.masks[:, None].float(), size=masks.shape[2:]).bool().flatten(1)
        else:
            values = point_sample(masks, points[layer])
            wanted = point_sample(targets.masks[:, None], points[layer][targets.batch_index])[:, 0]
        costs = mask_match_cost(
            predictions.logits[layer],
            values,
            targets.labels,
            wanted,
            targets.num_targets,
            mask_cost=matcher.mask_cost,
            w_class=matcher.cost_class,
            w_mask=matcher.cost_mask,
            w_dice=matcher.cost_dice,
            alpha=matcher.alpha,
            gamma=matcher.gamma,
        )
        for image, cost in enumerate(costs.split(targets.num_targets)):
            if f"{group}match/{head}{image}/cost" in case:
                expected = case[f"{group}match/{head}{image}/cost"].T
                torch.testing.assert_close(cost, expected, rtol=0, atol=COST_ATOL)


@pytest.mark.parametrize(("name", "group"), POINT_CASES)
def test_uncertain_points(name: str, group: str) -> None:
    """The points where losses are taken, as a set for each mask."""
    case = load(name)
    predictions, targets, draws = predictions_of(case, group), targets_of(case, group), draws_of(case, group)
    query = matcher_of(case).match(predictions, targets, draws.match).query
    matched = Matched.of(predictions, targets, query)
    found = uncertain_points(
        matched.maps[:, None],
        case.config["num_points"],
        map_index=matched.map_index,
        oversample_ratio=case.config["oversample_ratio"],
        importance_ratio=case.config["importance_sample_ratio"],
        candidates=draws.candidates.flatten(0, 1),
        extra=draws.extra.flatten(0, 1),
    )
    expected = in_target_order(case, group, "final").flatten(0, 1)
    for mine, official in zip(found.tolist(), expected.tolist(), strict=True):
        assert sorted(mine) == sorted(official)


@pytest.mark.parametrize(("name", "group"), CASES)
def test_losses(name: str, group: str) -> None:
    case = load(name)
    losses, total = losses_of(case, group, predictions_of(case, group))
    assert losses.keys() == set(case.names(f"{group}loss/"))
    for loss, value in losses.items():
        torch.testing.assert_close(value, case[f"{group}loss/{loss}"], rtol=LOSS_RTOL, atol=0)
    if f"{group}loss_total" in case:
        torch.testing.assert_close(total, case[f"{group}loss_total"], rtol=LOSS_RTOL, atol=0)


@pytest.mark.parametrize(("name", "group"), find(has_matched_losses, ("matched/hard/", "matched/soft/")))
def test_losses_of_matched_rows(name: str, group: str) -> None:
    """Each loss by itself: summed over rows, divided by the number of masks."""
    case = load(name)
    targets = case[f"pairwise/targets_{group.split('/')[1]}"]
    focal = {f"sigmoid_focal/{variant}": Focal(**f) for variant, f in case.config["focal"].items()}
    for loss, kind in {"dice": None, "sigmoid_ce": None, **focal}.items():
        logits = case["matched/logits"].requires_grad_()
        of_mask, of_dice = RowLosses.apply(logits, targets, kind)
        found = (of_dice if loss == "dice" else of_mask).sum() / case.config["num_masks"]
        torch.testing.assert_close(found, case[f"{group}{loss}/loss"], rtol=1e-5, atol=1e-5)
        (grad,) = torch.autograd.grad(found, logits)
        torch.testing.assert_close(grad, case[f"{group}{loss}/grad"], rtol=1e-5, atol=1e-5)
