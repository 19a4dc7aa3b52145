"""Box arithmetic: plain loops as the reference, degenerate boxes, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detr_fast import boxes


def random_boxes(count: int, rng: torch.Generator) -> Tensor:
    """[count, 4] xyxy with positive area."""
    corners = torch.rand(count, 2, 2, generator=rng, dtype=torch.float64).sort(dim=1).values
    return corners.flatten(1) + torch.tensor([0, 0, 1e-3, 1e-3], dtype=torch.float64)


def overlap_ref(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """(iou, union, giou) of two boxes of positive area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = width * height / union
    return iou, union, iou - (hull - union) / hull


def test_overlaps_of_every_pair(rng: torch.Generator) -> None:
    a, b = random_boxes(9, rng), random_boxes(7, rng)
    expected = torch.tensor(
        [[overlap_ref(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64
    )
    iou, union = boxes.box_iou(a, b)
    torch.testing.assert_close(iou, expected[..., 0])
    torch.testing.assert_close(union, expected[..., 1])
    torch.testing.assert_close(boxes.generalized_box_iou(a, b), expected[..., 2])
    paired = boxes.paired_generalized_box_iou(a[:7], b)
    torch.testing.assert_close(paired, expected[:7, :, 2].diagonal())


def test_formats_round_trip(rng: torch.Generator) -> None:
    cxcywh = torch.rand(3, 5, 4, generator=rng)
    torch.testing.assert_close(boxes.box_xyxy_to_cxcywh(boxes.box_cxcywh_to_xyxy(cxcywh)), cxcywh)
    assert boxes.box_cxcywh_to_xyxy(torch.tensor([4.0, 3.0, 2.0, 6.0])).tolist() == [3, 0, 5, 6]


DEGENERATE = torch.tensor(
    [
        [0.2, 0.2, 0.2, 0.2],  # a point
        [0.8, 0.8, 0.8, 0.8],
        [0.2, 0.1, 0.2, 0.9],  # a line
        [0.6, 0.2, 0.4, 0.8],  # right of its left edge
        [0.6, 0.8, 0.4, 0.2],
        [0.1, 0.1, 0.9, 0.9],
        [3e-30, 3e-30, 4e-30, 4e-30],  # an area that underflows
    ]
)


def test_degenerate_boxes_have_finite_overlaps_and_gradients() -> None:
    a = DEGENERATE.clone().requires_grad_()
    iou, union = boxes.box_iou(a, DEGENERATE)
    giou = boxes.generalized_box_iou(a, DEGENERATE)
    for value in (iou, union, giou):
        assert value.isfinite().all()
    assert (giou.detach() >= -1).all()
    assert (giou.detach() <= 1).all()
    (iou.sum() + giou.sum()).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert boxes.box_area(DEGENERATE)[:5].tolist() == [0, 0, 0, 0, 0]
    # two points apart, two points in one place
    assert giou[0, 1] == -1
    assert giou[0, 0] == 0


def test_nan_stays_nan() -> None:
    nan = torch.full((1, 4), torch.nan)
    assert boxes.generalized_box_iou(nan, DEGENERATE).isnan().all()


def test_empty_lists() -> None:
    none = torch.zeros(0, 4)
    assert boxes.generalized_box_iou(none, DEGENERATE).shape == (0, len(DEGENERATE))
    assert boxes.box_iou(DEGENERATE, none)[0].shape == (len(DEGENERATE), 0)
    assert boxes.masks_to_boxes(torch.zeros(0, 5, 6)).shape == (0, 4)


def test_masks_to_boxes() -> None:
    masks = torch.zeros(4, 6, 8)
    masks[0, 2:5, 1:7] = 1
    masks[1, 3, 4] = 255
    masks[2] = 1
    assert boxes.masks_to_boxes(masks).tolist() == [[1, 2, 6, 4], [4, 3, 4, 3], [0, 0, 7, 5], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: boxes.box_cxcywh_to_xyxy(torch.zeros(3)), r"boxes: expected \[..., 4\]; got \[3\]"),
        (
            lambda: boxes.box_iou(torch.zeros(4), torch.zeros(2, 4)),
            r"boxes1_xyxy: expected \[N, 4\]; got \[4\]",
        ),
        (lambda: boxes.generalized_box_iou(DEGENERATE, torch.zeros(2, 5)), r"boxes2_xyxy: .* got \[2, 5\]"),
        (lambda: boxes.masks_to_boxes(torch.zeros(5, 6)), r"masks: expected \[N, H, W\]; got \[5, 6\]"),
    ],
)
def test_wrong_shapes(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_boxes_in_another_format_are_told(rng: torch.Generator) -> None:
    low, size = torch.rand(20, 2, generator=rng) * 0.7, torch.rand(20, 2, generator=rng) * 0.2 + 0.1
    corners = torch.cat((low, low + size), dim=1)
    relative = boxes.box_xyxy_to_cxcywh(corners)
    assert boxes.likely_format(relative) is None
    assert (
        boxes.likely_format(relative + torch.tensor([0.0, 0.0, 0.5, 0.5])) is None
    )  # amodal: wide, not corners
    assert boxes.likely_format(relative[:0]) is None
    assert boxes.likely_format(torch.rand(40, 4, generator=rng)) is None
    assert boxes.likely_format(corners) == "relative corners (x0, y0, x1, y1)"
    assert boxes.likely_format(corners * 640) == "corners (x0, y0, x1, y1) in pixels"
    assert boxes.likely_format(relative[:3] * 640 - torch.tensor([0.0, 0.0, 60.0, 60.0])) == "boxes in pixels"
