"""Metrics that DETR's set criterion reports beside its losses, for all decoder layers and images at once.

Letters as in `detr_fast.structures`. `query` is `Matches.query`: [L, sumT], -1 for a target left without a
query. Every function returns one value a layer, [L], and none waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, paired_box_iou
from detr_fast.structures import PackedTargets


@torch.no_grad()
def cardinality_error(logits: Tensor, batch_index: Tensor) -> Tensor:
    """Mean over images of |queries that prefer some class to "no object" - targets|.

    Args:
        logits: [L, B, Q, K + 1].
        batch_index: [sumT] int64, the image of each target.
    """
    detected = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)  # one logit alone detects nothing
    present = detected.new_zeros(logits.shape[1]).index_add(0, batch_index, torch.ones_like(batch_index))
    return (detected - present).abs().to(logits.dtype).mean(1)


@torch.no_grad()
def classification_error(logits: Tensor, targets: PackedTargets, query: Tensor) -> Tensor:
    """Percentage of matched queries whose best class is wrong; 100 where nothing is matched."""
    best = at_queries(logits, targets.batch_index, query).argmax(-1)
    matched = query >= 0
    right = ((best == targets.labels) & matched).sum(1)
    return 100 - 100 * right / matched.sum(1).clamp(min=1)


@torch.no_grad()
def matched_iou(boxes: Tensor, targets: PackedTargets, query: Tensor) -> Tensor:
    """[L, sumT] IoU of each target's box and its query's of `boxes` [L, B, Q, 4], all (cx, cy, w, h)."""
    found = at_queries(boxes, targets.batch_index, query)
    wanted = targets.boxes.to(found.dtype).expand_as(found)
    return paired_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(wanted))


def varifocal_weights(quality: Tensor) -> Tensor:
    """`target_weights` [..., 2] of `class_loss`: entropy of score and quality, times the quality."""
    return torch.stack((quality**2, quality * (1 - quality)), -1)


def at_queries(values: Tensor, batch_index: Tensor, query: Tensor) -> Tensor:
    """[L, B, Q, X] -> [L, sumT, X]: the values at each target's query; at query 0 for an unmatched target."""
    index = batch_index * values.shape[2] + query.clamp(min=0)
    return values.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, values.shape[3]))
