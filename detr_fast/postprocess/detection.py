"""From predictions to detections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy
from detr_fast.structures import Predictions


@torch.no_grad()
def postprocess_detection(
    predictions: Predictions | Mapping[str, Any], target_sizes: Tensor
) -> list[dict[str, Tensor]]:
    """The detections of the last decoder layer, as facebookresearch/detr's `PostProcess` returns them.

    Every query gives its best class other than "no object": nothing is sorted, thresholded or clipped.

    Args:
        predictions: softmax logits with "no object" last, or the official dict of outputs.
        target_sizes: [B, 2], height and width in pixels that the boxes are scaled to.

    Returns:
        For each image `scores` [Q], `labels` and `queries` [Q] int64 and `boxes` [Q, 4] xyxy in pixels.
    """
    return by_image(best_classes(predictions, target_sizes))


@torch.no_grad()
def postprocess_focal(
    predictions: Predictions | Mapping[str, Any], target_sizes: Tensor, top: int = 100
) -> list[dict[str, Tensor]]:
    """The detections of the last decoder layer, as Deformable DETR's `PostProcess` returns them.

    The `top` best pairs of query and class, best first: a query may be reported with several classes.

    Args:
        predictions: sigmoid logits, or the official dict of outputs.
        target_sizes: [B, 2], height and width in pixels that the boxes are scaled to.
        top: pairs of an image.

    Returns:
        For each image `scores` [X], `labels` and `queries` [X] int64 and `boxes` [X, 4] xyxy in pixels, with
        X = min(top, Q * K).
    """
    return by_image(best_pairs(predictions, target_sizes, top))


class Detections(NamedTuple):
    """Detections of a batch: `scores`, `labels` and `queries` [B, X], `boxes` [B, X, 4] xyxy in pixels."""

    scores: Tensor
    labels: Tensor
    queries: Tensor
    boxes: Tensor


def best_classes(predictions: Predictions | Mapping[str, Any], target_sizes: Tensor) -> Detections:
    """See `postprocess_detection`."""
    logits, boxes = _last_layer(predictions, target_sizes)
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    queries = torch.arange(logits.shape[1], device=logits.device).expand_as(labels)
    return Detections(scores, labels, queries, boxes)


def best_pairs(
    predictions: Predictions | Mapping[str, Any], target_sizes: Tensor, top: int = 100
) -> Detections:
    """See `postprocess_focal`."""
    if top < 1:
        raise ValueError(f"top: expected at least 1; got {top}")
    logits, boxes = _last_layer(predictions, target_sizes)
    scores, pair = logits.sigmoid().flatten(1).topk(min(top, logits.shape[1] * logits.shape[2]), dim=1)
    query, labels = pair // logits.shape[2], pair % logits.shape[2]
    return Detections(scores, labels, query, boxes.gather(1, query[..., None].expand(-1, -1, 4)))


def by_image(detections: Detections) -> list[dict[str, Tensor]]:
    """Each image's detections by name."""
    return [dict(zip(Detections._fields, image, strict=True)) for image in zip(*detections, strict=True)]


def _last_layer(predictions: Predictions | Mapping[str, Any], target_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, Q, K] and boxes [B, Q, 4] xyxy in pixels, float32 at least."""
    predictions = Predictions.of(predictions)
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]
    if target_sizes.shape != (logits.shape[0], 2):
        raise ValueError(
            f"target_sizes: expected [B, 2] with B = {logits.shape[0]}; got {list(target_sizes.shape)}"
        )
    logits, boxes = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, boxes))
    height, width = target_sizes.to(boxes).unbind(1)
    return logits, box_cxcywh_to_xyxy(boxes) * torch.stack((width, height, width, height), dim=1)[:, None]
