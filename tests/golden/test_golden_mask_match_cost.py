"""Pairwise mask costs of the official matchers of Mask2Former and MaskFormer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from detr_fast.ops import mask_match_cost
from tests.golden.case import find, load

KINDS = ("hard", "soft")
CASES = find(lambda notes: "uncertain_variants" in notes.get("config", {}), ("pairwise/",))


def costs(name: str, kind: str, backend: str, **options: Any) -> torch.Tensor:
    """[T, Q], one term of weight 1 as in `options`."""
    case = load(name)
    logits, targets = case["pairwise/logits"], case[f"pairwise/targets_{kind}"]
    return mask_match_cost(
        torch.zeros(1, len(logits), 2),
        logits[None],
        torch.zeros(len(targets), dtype=torch.int64),
        targets.bool() if kind == "hard" else targets,
        [len(targets)],
        backend=backend,
        **{"w_class": 0.0, "w_mask": 0.0, "w_dice": 0.0, **options},
    )


def focal_options(notes: Mapping[str, Any], variant: str) -> dict[str, Any]:
    return {"mask_cost": "focal", "w_mask": 1.0, **notes["config"]["focal"][variant]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("name", "group"), CASES)
def test_pairwise_costs(name: str, group: str, kind: str, backend: str) -> None:
    case = load(name)
    terms = {"dice": {"w_dice": 1.0}, "sigmoid_ce": {"w_mask": 1.0}}
    for variant in case.names(f"{group}{kind}/sigmoid_focal/"):
        terms[f"sigmoid_focal/{variant}"] = focal_options(case.notes, variant)
    for term, options in terms.items():
        expected = case[f"{group}{kind}/{term}"].T
        torch.testing.assert_close(
            costs(name, kind, backend, **options), expected, rtol=1e-5, atol=1e-5, msg=term
        )
