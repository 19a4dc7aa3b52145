"""Box conversions and overlaps in plain PyTorch.

Formats: `cxcywh` (centre, width, height) and `xyxy` (left, top, right, bottom). Values may be relative or
pixels; the functions are scale free. A box whose right is left of its left edge (or bottom above its top)
counts as empty: every overlap is finite, and equals the usual definition for boxes of positive area.

These take corners, as users have them. Matching costs compute GIoU from centres and sizes instead
(`ops/box_match_cost/reference.py`): for small boxes differences of corners have lost digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# when boxes are taken for another format: of so many and more, so large a share, so far beyond their image
FEW_BOXES, SMALL_SHARE, OUTSIDE, PIXELS = 8, 0.1, 0.05, 2.0


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (cx, cy, w, h) -> [..., 4] (x0, y0, x1, y1)."""
    _check(boxes, "boxes")
    center, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat((center - half, center + half), dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) -> [..., 4] (cx, cy, w, h)."""
    _check(boxes, "boxes")
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area of [..., 4] boxes -> [...]; 0 for an empty box."""
    _check(boxes_xyxy, "boxes_xyxy")
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and union of every pair: [N, 4] x [M, 4] -> ([N, M], [N, M]).

    Two empty boxes have IoU 0.
    """
    _check_lists(boxes1_xyxy, boxes2_xyxy)
    return _iou_union(boxes1_xyxy[:, None], boxes2_xyxy[None])


def paired_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """IoU of each box with its partner: [..., 4] and [..., 4] (broadcast) -> [...]; 0 for two empty boxes."""
    _check(boxes1_xyxy, "boxes1_xyxy")
    _check(boxes2_xyxy, "boxes2_xyxy")
    return _iou_union(boxes1_xyxy, boxes2_xyxy)[0]


def generalized_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """GIoU of every pair: [N, 4] x [M, 4] -> [N, M], in [-1, 1] (Rezatofighi et al. 2019, algorithm 1)."""
    _check_lists(boxes1_xyxy, boxes2_xyxy)
    return paired_generalized_box_iou(boxes1_xyxy[:, None], boxes2_xyxy[None])


def paired_generalized_box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """GIoU of each box with its partner: [..., 4] and [..., 4] (broadcast) -> [...], in [-1, 1].

    Where the hull of both boxes is empty, GIoU is 0.
    """
    _check(boxes1_xyxy, "boxes1_xyxy")
    _check(boxes2_xyxy, "boxes2_xyxy")
    iou, union = _iou_union(boxes1_xyxy, boxes2_xyxy)
    low = torch.minimum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    high = torch.maximum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    size = (high - low).clamp(min=0)
    hull = size[..., 0] * size[..., 1]
    return iou - (hull - union) / _one_if_zero(hull)


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes around [N, H, W] masks (non-zero = inside) -> [N, 4] xyxy in pixels, float32.

    Right and bottom lie one past the last pixel inside, so that widths count pixels, as in COCO's files. An
    empty mask gives (0, 0, 0, 0).
    """
    if masks.ndim != 3:
        raise ValueError(f"masks: expected [N, H, W]; got {list(masks.shape)}")
    # reductions of bool are much slower than those of uint8
    inside = (masks if masks.dtype == torch.bool else masks != 0).view(torch.uint8)
    sides = []
    for occupied in (inside.amax(dim=1), inside.amax(dim=2)):
        # argmax returns the first of equal maxima
        end = occupied.shape[1] - occupied.flip(1).argmax(dim=1)
        sides.append((occupied.argmax(dim=1), end * occupied.amax(dim=1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), dim=1).float()


def masks_to_boxes(masks: Tensor) -> Tensor:
    """As `tight_boxes`, but right and bottom are the last pixel inside, as in facebookresearch/detr."""
    boxes = tight_boxes(masks)
    boxes[:, 2:] = (boxes[:, 2:] - 1).clamp(min=0)
    return boxes


def _iou_union(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    high = torch.minimum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = box_area(boxes1_xyxy) + box_area(boxes2_xyxy) - intersection
    return intersection / _one_if_zero(union), union


def _one_if_zero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


def _check(boxes: Tensor, name: str) -> None:
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ValueError(f"{name}: expected [..., 4]; got {list(boxes.shape)}")


def _check_lists(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> None:
    for name, boxes in (("boxes1_xyxy", boxes1_xyxy), ("boxes2_xyxy", boxes2_xyxy)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name}: expected [N, 4]; got {list(boxes.shape)}")


def likely_format(boxes: Tensor) -> str | None:
    """What boxes [T, 4] look like that should be relative (cx, cy, w, h) and can hardly be; None if they can.

    One that reaches out of its image may do so on purpose; only many that all fit another format tell.
    """
    if not boxes.numel():
        return None
    ordered = bool((boxes[:, 2:] >= boxes[:, :2]).all())
    if bool((boxes.abs().amax(1) > PIXELS).float().mean() > SMALL_SHARE):
        return "corners (x0, y0, x1, y1) in pixels" if ordered else "boxes in pixels"
    if len(boxes) < FEW_BOXES or not ordered:
        return None
    corners = box_cxcywh_to_xyxy(boxes)
    outside = ((corners < -OUTSIDE) | (corners > 1 + OUTSIDE)).any(1)
    return "relative corners (x0, y0, x1, y1)" if bool(outside.float().mean() > SMALL_SHARE) else None
