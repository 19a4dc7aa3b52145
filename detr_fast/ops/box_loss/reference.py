"""The plainest form of the losses in PyTorch: any device, float64 where the boxes are, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, paired_generalized_box_iou
from detr_fast.ops.matched import check_queries


def forward(boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]) -> Tensor:
    """[2, L] sums over matched pairs; arguments as the public function's, already checked."""
    queries = boxes.shape[2]
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    if boxes.device.type == "cpu" and type(query) is Tensor:
        check_queries(query, queries)
    first = torch.tensor(
        [b * queries for b, size in enumerate(num_targets) for _ in range(size)], dtype=torch.int64
    )
    matched = query >= 0
    place = torch.where(matched, query + first.to(query.device), 0)
    if not boxes.shape[1] * queries:
        return boxes.flatten(2).sum(2).sum(1).expand(2, -1)
    found = boxes.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
    wanted = target_boxes.to(boxes.dtype).expand_as(found)
    l1 = (found - wanted).abs().sum(-1)
    giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted))
    return torch.stack((l1.where(matched, 0).sum(1), (1 - giou).where(matched, 0).sum(1)))


def backward(
    grad_losses: Tensor, boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]
) -> Tensor:
    """The gradient of the boxes, in their dtype."""
    differentiate = torch.func.vjp(lambda x: forward(x, target_boxes, query, num_targets), boxes)[1]
    (gradient,) = differentiate(grad_losses)
    return gradient.contiguous()
