"""Costs and matches that the official matchers made of their own stored outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast import HungarianMatcher
from detr_fast.ops import use_backend
from detr_fast.structures import PackedTargets, Predictions
from tests.golden.case import Case, find, load

# Groups of matches, and the group whose outputs were matched.
OUTPUTS = {"": "", "scaled/": "scaled/", "shift/": "scaled/", "zero1/": "", "zeroall/": ""}
# What the cases suggest for costs of un-prefixed outputs; with stored outputs no group needs more.
COST_TOLERANCE = 5e-5


def has_matcher(notes: Mapping[str, Any]) -> bool:
    official = notes.get("source", "").startswith(
        ("facebookresearch/detr", "fundamentalvision/Deformable-DETR")
    )
    return official and bool({"matcher", "set_cost_class"} & notes.get("config", {}).keys())


CASES = [p for p in find(has_matcher, tuple(OUTPUTS)) if f"{p.values[1]}match/0/src" in load(p.values[0])]


def matcher_of(case: Case) -> HungarianMatcher:
    if "matcher" in case.config:
        return HungarianMatcher(**case.config["matcher"])
    weights = [case.config[f"set_cost_{term}"] for term in ("class", "bbox", "giou")]
    return HungarianMatcher(*weights, "focal", case.config["focal_alpha"], case.config["focal_gamma"])


def layers_of(case: Case, group: str, last: str, earlier: str) -> list[str]:
    """Prefixes of the arrays of each layer, the last layer last."""
    aux = {int(name.split("/")[0]) for name in case.names(f"{group}{earlier}/")}
    return [*(f"{group}{earlier}/{i}/" for i in sorted(aux)), f"{group}{last}/"]


def predictions_of(case: Case, group: str) -> Predictions:
    layers = layers_of(case, OUTPUTS[group], "out", "aux")
    logits = torch.stack([case[f"{layer}pred_logits"] for layer in layers])
    if group == "shift/":
        logits[..., -1] += case.config["shift"]
    return Predictions(logits, torch.stack([case[f"{layer}pred_boxes"] for layer in layers]))


def targets_of(case: Case, group: str) -> list[dict[str, Tensor]]:
    """The groups zero1 and zeroall emptied the targets of some images."""
    images = sorted({int(name.split("/")[0]) for name in case.names("target/")})
    kept = [slice(0) if case[f"{group}match/{i}/src"].numel() == 0 else slice(None) for i in images]
    return [
        {key: case[f"target/{i}/{key}"][rows] for key in ("labels", "boxes")}
        for i, rows in zip(images, kept, strict=True)
    ]


@pytest.mark.parametrize(("name", "group"), CASES)
def test_matches_of_stored_outputs(name: str, group: str) -> None:
    case = load(name)
    predictions, targets, matcher = predictions_of(case, group), targets_of(case, group), matcher_of(case)
    packed = PackedTargets.from_list(targets)
    matches = matcher.match(predictions, packed)
    for layer, prefix in enumerate(layers_of(case, group, "match", "match_aux")):
        one = {"pred_logits": predictions.logits[layer], "pred_boxes": predictions.boxes[layer]}
        found = matches.as_indices(packed, layer)
        for image, ((query, target), (query_alone, target_alone)) in enumerate(
            zip(found, matcher(one, targets), strict=True)
        ):
            for actual in (query, query_alone):
                assert torch.equal(actual, case[f"{prefix}{image}/src"])
            for actual in (target, target_alone):
                assert torch.equal(actual, case[f"{prefix}{image}/tgt"])


@pytest.mark.parametrize(
    ("name", "group"),
    [p for p in CASES if f"{p.values[1]}match/0/cost_matrix" in load(p.values[0])],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_costs_of_stored_outputs(name: str, group: str, backend: str) -> None:
    case = load(name)
    predictions, matcher = predictions_of(case, group), matcher_of(case)
    packed = PackedTargets.from_list(targets_of(case, group))
    with use_backend(box_match_cost=backend):
        costs = matcher.costs(predictions, packed)
    for layer, prefix in enumerate(layers_of(case, group, "match", "match_aux")):
        totals = []
        for image, block in enumerate(costs[layer].split(packed.num_targets)):
            expected = case[f"{prefix}{image}/cost_matrix"].T
            torch.testing.assert_close(block, expected, rtol=0, atol=COST_TOLERANCE)
            src, tgt = case[f"{prefix}{image}/src"], case[f"{prefix}{image}/tgt"]
            totals.append(block[tgt, src].sum())
            torch.testing.assert_close(totals[-1], case[f"{prefix}{image}/cost"], rtol=0, atol=COST_TOLERANCE)
        torch.testing.assert_close(sum(totals), case[f"{prefix}total_cost"], rtol=0, atol=2 * COST_TOLERANCE)
