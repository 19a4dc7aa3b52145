"""Boxes, IoUs and position encodings against facebookresearch/detr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from detr_fast import boxes
from detr_fast.masks import resize_masks
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.structures import PaddedImages
from tests.golden import case as golden


def box_case(notes: Mapping[str, Any]) -> bool:
    return notes["source"] == "facebookresearch/detr" and "pos_sine" in notes["config"]


@pytest.mark.parametrize(("name", "group"), golden.find(box_case))
def test_conversions(name: str, group: str) -> None:
    case = golden.load(name)
    for side in ("a", "b"):
        xyxy = boxes.box_cxcywh_to_xyxy(case[f"in/{side}_cxcywh"])
        torch.testing.assert_close(xyxy, case[f"xyxy/{side}"], rtol=0, atol=1e-6)
    back = boxes.box_xyxy_to_cxcywh(case["xyxy/a"])
    torch.testing.assert_close(back, case["cxcywh/a_roundtrip"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "group"), golden.find(box_case, ("random/", "special/")))
def test_overlaps(name: str, group: str) -> None:
    case = golden.load(name)
    sides = ("xyxy/a", "xyxy/b") if group == "random/" else ("in/special_a_xyxy", "in/special_b_xyxy")
    a, b = (case[side] for side in sides)
    iou, union = boxes.box_iou(a, b)
    torch.testing.assert_close(iou, case[f"{group}iou"], rtol=0, atol=1e-6)
    torch.testing.assert_close(union, case[f"{group}union"], rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes.generalized_box_iou(a, b), case[f"{group}giou"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "group"), golden.find(box_case, ("pos_sine/",)))
def test_sine_encoding(name: str, group: str) -> None:
    case = golden.load(name)
    sine = case.config["pos_sine"]
    mask = case["in/ragged_mask"].bool()
    for variant in case.names(group):
        features, kind = variant.split("/")
        encoding = PositionEncodingSine(
            2 * int(features), temperature=sine["temperature"], normalize=kind == "normalized"
        )
        torch.testing.assert_close(encoding(mask), case[f"{group}{variant}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "group"), golden.find(box_case, ("mask_down/",)))
def test_masks_shrink(name: str, group: str) -> None:
    case = golden.load(name)
    full, *valid = case["in/image_mask_valid_hw"].tolist()
    # the full size comes first, so that the others are padded to it
    padded = PaddedImages.from_list([torch.zeros(3, h, w) for h, w in (full, *valid)])
    for size in case.names(group):
        small = resize_masks(padded.mask[1:], [int(side) for side in size.split("x")])
        assert torch.equal(small, case[f"{group}{size}"].bool())


@pytest.mark.parametrize(("name", "group"), golden.find(box_case, ("masks_to_boxes",)))
def test_masks_to_boxes(name: str, group: str) -> None:
    case = golden.load(name)
    assert torch.equal(boxes.masks_to_boxes(case["in/masks"]), case["masks_to_boxes"])
