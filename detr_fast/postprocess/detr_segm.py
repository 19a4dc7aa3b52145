"""From the masks of a DETR for segmentation to instances and panoptic segments, as facebookresearch/detr."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.masks import resize_masks
from detr_fast.postprocess.detection import postprocess_detection
from detr_fast.postprocess.masks import Size, at_once, checked_sizes
from detr_fast.structures import Predictions

SMALLEST = 5  # pixels of a panoptic segment


@torch.no_grad()
def postprocess_segm(
    predictions: Predictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    threshold: float = 0.5,
    score_threshold: float = 0.0,
) -> list[dict[str, Tensor]]:
    """The detections of the last decoder layer with their masks, as the official `PostProcessSegm`.

    Mask logits are resized bilinearly to the padded batch, compared with the threshold, cropped to the image
    and resized to the size asked for, nearest. Nothing is sorted, and a mask may be empty.

    Args:
        predictions: with masks [1, B, Q, h, w], or the official dict of outputs.
        padded_size: (H, W) of the padded batch that the model saw.
        image_sizes: (height, width) of each image in that batch.
        output_sizes: (height, width) of each image's result.
        threshold: mask probability that a pixel must exceed.
        score_threshold: detections of a lower score are left out before their masks take memory; 0, as in
            the official code, keeps all.

    Returns:
        For each image `scores` [X], `labels` and `queries` [X] int64, `boxes` [X, 4] xyxy in pixels of the
        result and `masks` [X, h, w] bool.

    Raises:
        ValueError: a size or option does not fit; the message names the argument.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected 0 < threshold < 1; got {threshold!r}")
    predictions, masks = _with_masks(predictions)
    sizes = checked_sizes(len(masks), padded_size, image_sizes, output_sizes)
    detections = postprocess_detection(predictions, torch.tensor([size for _, size in sizes]))
    least = math.log(threshold / (1 - threshold))
    results = []
    for found, maps, (crop, size) in zip(detections, masks, sizes, strict=True):
        kept = ~(found["scores"] < score_threshold)
        result = {name: values[kept] for name, values in found.items()}
        maps = maps[kept]
        inside = torch.empty(len(maps), *size, dtype=torch.bool, device=maps.device)
        few = at_once(max(padded_size, size, key=math.prod), maps.device)
        for start in range(0, len(maps), few):
            part = slice(start, start + few)
            mask = _bilinear(maps[part], padded_size)[:, : crop[0], : crop[1]] > least
            inside[part] = resize_masks(mask, size)
        results.append({**result, "masks": inside})
    return results


@torch.no_grad()
def postprocess_detr_panoptic(
    predictions: Predictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    things: Collection[int],
    threshold: float = 0.85,
    crop_padding: bool = False,
) -> list[dict[str, Any]]:
    """Segments that fill the image: each pixel goes to the query with the largest mask logit.

    As the official `PostProcessPanoptic` does it: queries whose best class is "no object", or has at most the
    threshold's probability, are dropped, then those that win 4 pixels or fewer, until none does. Pixels of a
    stuff class first count for the first of its queries, so that the others are dropped; then pixels are
    assigned anew among the remaining queries, whatever their class. No pixel is void unless no query remains.

    Args:
        predictions: see `postprocess_segm`.
        padded_size: see `postprocess_segm`.
        image_sizes: see `postprocess_segm`.
        output_sizes: see `postprocess_segm`.
        things: the labels whose segments stay apart; segments of any other label become one.
        threshold: the class probability above which a query takes part.
        crop_padding: the official code resizes the masks of the padded batch to the image, which squeezes
            those of a padded image: right for one image at a time. True leaves the padding out instead.

    Returns:
        For each image `segmentation` [h, w] int32 of segment ids, 0 where there is none at all, and
        `segments`, a list of {"id", "label", "isthing", "score" (class probability), "area", "query"}.
        Official ids are smaller by 1.

    Raises:
        ValueError: a size does not fit; the message names the argument.
    """
    predictions, masks = _with_masks(predictions)
    sizes = checked_sizes(len(masks), padded_size, image_sizes, output_sizes)
    results = []
    for logits, maps, (crop, size) in zip(predictions.logits[-1], masks, sizes, strict=True):
        scores, labels = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).max(-1)
        kept = ((labels != logits.shape[1] - 1) & (scores > threshold)).nonzero()[:, 0]
        rows, columns = (_nearest(i, o).to(maps.device) for i, o in zip(crop, size, strict=True))
        queries, whole = kept.tolist(), padded_size if crop_padding else crop
        made = [partial(_picked, maps[query], whole, rows, columns) for query in queries]
        segmentation, area, alive = _contest(made, labels[kept].tolist(), frozenset(things))
        if segmentation is None:
            segmentation = torch.zeros(size, dtype=torch.int32, device=maps.device)
        results.append(
            {
                "segmentation": segmentation,
                "segments": [
                    {
                        "id": position + 1,
                        "label": int(labels[query]),
                        "isthing": int(labels[query]) in things,
                        "score": float(scores[query]),
                        "area": area[position],
                        "query": query,
                    }
                    for position, query in enumerate(queries[n] for n in alive)
                ],
            }
        )
    return results


def _contest(
    maps: Sequence[Callable[[], Tensor]], labels: Sequence[int], things: frozenset[int]
) -> tuple[Tensor | None, list[int], list[int]]:
    """Assigns each pixel to the largest of X maps [h, w], each made when it is its turn, again in each round.

    Returns:
        Segment ids [h, w] int32, None where no segment remains, and the area and the index in X of each
        segment.
    """
    alive = list(range(len(maps)))
    first = {label: n for n, label in reversed(list(enumerate(labels)))}
    owners = [n if label in things else first[label] for n, label in enumerate(labels)]
    while alive:
        best, *others = alive
        largest = maps[best]()
        winner = torch.full_like(largest, owners[best], dtype=torch.int32)
        for n in others:
            logits = maps[n]()
            winner.masked_fill_(logits > largest, owners[n])
            torch.maximum(logits, largest, out=largest)
        area = winner.flatten().bincount(minlength=len(maps)).tolist()
        remaining = [n for n in alive if area[n] >= SMALLEST]
        if remaining == alive:
            ids = torch.zeros(len(maps), dtype=torch.int32, device=winner.device)
            ids[alive] = torch.arange(1, len(alive) + 1, dtype=torch.int32, device=winner.device)
            segmentation = ids.index_select(0, winner.flatten()).view_as(winner)
            return segmentation, [area[n] for n in alive], alive
        alive, owners = remaining, list(range(len(maps)))
    return None, [], []


def _picked(mask: Tensor, whole: Size, rows: Tensor, columns: Tensor) -> Tensor:
    """Of a mask [h, w] resized bilinearly, the pixels that resizing it again, nearest, reads."""
    return _bilinear(mask[None], whole)[0].index_select(0, rows).index_select(1, columns)


def _with_masks(predictions: Predictions | Mapping[str, Any]) -> tuple[Predictions, Tensor]:
    """Predictions, and their masks apart."""
    predictions = Predictions.of(predictions)
    if predictions.masks is None:
        raise ValueError(
            "predictions: expected masks [1, B, Q, h, w], as of a DETR for segmentation; got none"
        )
    return predictions, predictions.masks[-1]


def _bilinear(masks: Tensor, size: Size) -> Tensor:
    """[Q, h, w] -> [Q, *size], float32 at least."""
    masks = masks.to(torch.promote_types(masks.dtype, torch.float32))
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _nearest(source: int, size: int) -> Tensor:
    """The row (or column) of an image that each row of its resized copy is taken from, as PIL's NEAREST."""
    step = source / size
    # PIL adds up its steps, so a pixel's centre may fall on the other side of an edge
    return torch.from_numpy(np.cumsum(np.concatenate(([step / 2], np.full(size - 1, step)))).astype(np.int64))
