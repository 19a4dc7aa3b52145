"""Masks and panoptic segments of a DETR for segmentation against facebookresearch/detr."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.postprocess import postprocess_detr_panoptic, postprocess_segm
from detr_fast.structures import Predictions
from tests.golden import case as golden
from tests.golden.case import Case
from tests.golden.test_golden_detr import detr, predictions_of

# what the case suggests: a share of an image's pixels, and pixels
MASKS, SEGMENTS = 5e-4, 10


def segmentation(notes: Mapping[str, Any]) -> bool:
    return detr(notes) and notes["config"]["masks"]


def sizes_of(sizes: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in sizes.tolist()]


def geometry(case: Case, group: str) -> tuple[tuple[int, int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Size of the padded batch, of its images and of the results."""
    fed, wanted = sizes_of(case["sizes"]), sizes_of(case["orig_sizes"])
    if group == "syn/":
        fed, wanted = sizes_of(case["syn/sizes"]), sizes_of(case["syn/target_sizes"])
    if group == "single/":
        index = case.config["single_image_index"]
        fed, wanted = [fed[index]], [wanted[index]]
    return (max(h for h, _ in fed), max(w for _, w in fed)), fed, wanted


@pytest.mark.parametrize(
    ("name", "group"), golden.find(segmentation, ("post/", "scaled/post/", "shift/post/"))
)
def test_instance_masks(name: str, group: str) -> None:
    case = golden.load(name)
    predictions = predictions_of(name, group.removesuffix("post/"))
    results = postprocess_segm(
        predictions,
        *geometry(case, group.removesuffix("post/")),
        threshold=case.config["post_segm_threshold"],
    )
    for image, found in enumerate(results):
        expected = case.bits(f"{group}{image}/masks")[:, 0]
        assert found["masks"].shape == expected.shape
        assert float((found["masks"] != expected).flatten(1).float().mean(1).max()) <= MASKS
        assert torch.equal(found["labels"], case[f"{group}{image}/labels"])


PANOPTIC_GROUPS = ("panoptic/", "scaled/panoptic/", "single/panoptic/", "syn/panoptic/")


@pytest.mark.parametrize(("name", "group"), golden.find(segmentation, PANOPTIC_GROUPS))
def test_panoptic_segments(name: str, group: str) -> None:
    case, group = golden.load(name), group.removesuffix("panoptic/")
    stored = group == "syn/"
    settings = case.config["syn_panoptic" if stored else "panoptic"]
    found = re.fullmatch(r"category id <= (\d+)", settings["is_thing"])
    assert found is not None
    if stored:
        logits, boxes, masks = (case[f"syn/in/pred_{name}"][None] for name in ("logits", "boxes", "masks"))
        predictions = Predictions(logits, boxes, masks=masks)
    else:
        predictions = predictions_of(name, group)
    results = postprocess_detr_panoptic(
        predictions,
        *geometry(case, group),
        things=range(int(found[1]) + 1),
        threshold=settings["threshold"],
    )
    slack = 0 if stored else SEGMENTS
    for image, result in enumerate(results):
        prefix = f"{group}panoptic/{image}/"
        expected = case[f"{prefix}segments"]
        segments = [[s["id"] - 1, s["isthing"], s["label"], s["area"]] for s in result["segments"]]
        mine = torch.tensor(segments, dtype=torch.int64).reshape(-1, 4)
        assert torch.equal(mine[:, :3], expected[:, :3])
        assert ((mine[:, 3] - expected[:, 3]).abs() <= slack).all()
        ids = case[f"{prefix}id_map"] + bool(segments)
        assert result["segmentation"].dtype == torch.int32
        assert int((result["segmentation"] != ids).sum()) <= slack
        areas = result["segmentation"].flatten().bincount(minlength=len(segments) + 1)[1:]
        assert torch.equal(areas, mine[:, 3])
        assert all(0 <= s["score"] <= 1 and s["score"] > settings["threshold"] for s in result["segments"])
