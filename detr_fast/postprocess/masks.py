"""From class and mask logits of MaskFormer and Mask2Former to semantic maps, instances, panoptic segments.

As in the official code, mask logits are resized bilinearly to the padded batch, cropped to the image and
resized again to the size asked for; but only those of queries that can still appear in an image's result, and
a few at a time, so that working memory grows with what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.boxes import tight_boxes
from detr_fast.structures import MaskPredictions

Size = tuple[int, int]
Resize = Literal["after", "before"]


@torch.no_grad()
def postprocess_semantic(
    predictions: MaskPredictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    resize: Resize = "after",
) -> list[Tensor]:
    """The score of every class at every pixel: the sum over queries of class times mask probability.

    Args:
        predictions: the last layer counts; or the official dict of outputs.
        padded_size: (H, W) of the padded batch that the model saw.
        image_sizes: (height, width) of each image in that batch.
        output_sizes: (height, width) of each image's result.
        resize: "after" takes the sum at the size of the model's image and resizes it, as the official code
            does for models that are only semantic; "before" takes it at the output size, as for all other
            models.

    Returns:
        [K, h, w] for each image, float32; the arg max over K is the semantic map, which
        `postprocess_semantic_labels` gives in much less memory.

    Raises:
        ValueError: a size or option does not fit; the message names the argument.
    """
    _check_resize(resize)
    results = []
    for logits, masks, crop, size in _images(predictions, padded_size, image_sizes, output_sizes):
        scores = _class_scores(logits, masks, size if resize == "before" else crop, padded_size, crop)
        results.append(_bilinear(scores, size))
    return results


@torch.no_grad()
def postprocess_semantic_labels(
    predictions: MaskPredictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    resize: Resize = "after",
) -> list[Tensor]:
    """The best class of every pixel: the arg max of `postprocess_semantic`, up to rounding, row by row.

    Args:
        predictions: see `postprocess_semantic`.
        padded_size: see `postprocess_semantic`.
        image_sizes: see `postprocess_semantic`.
        output_sizes: see `postprocess_semantic`.
        resize: see `postprocess_semantic`.

    Returns:
        [h, w] int64 for each image.

    Raises:
        ValueError: see `postprocess_semantic`.
    """
    _check_resize(resize)
    results = []
    for logits, masks, crop, size in _images(predictions, padded_size, image_sizes, output_sizes):
        if resize == "before":
            maps = _bilinear(masks, padded_size)[:, : crop[0], : crop[1]]
        else:
            maps = _class_scores(logits, masks, crop, padded_size, crop)
        labels = torch.empty(size, dtype=torch.int64, device=masks.device)
        for rows, band in _bands(maps, size):
            if resize == "before":
                band = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], band.sigmoid_())
            labels[rows] = band.argmax(0)
        results.append(labels)
    return results


@torch.no_grad()
def postprocess_instance(
    predictions: MaskPredictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    top: int = 100,
    things: Collection[int] | None = None,
    score_threshold: float = 0.0,
) -> list[dict[str, Tensor]]:
    """The `top` best pairs of query and class: a query may be reported with several classes.

    Args:
        predictions: see `postprocess_semantic`.
        padded_size: see `postprocess_semantic`.
        image_sizes: see `postprocess_semantic`.
        output_sizes: see `postprocess_semantic`.
        top: pairs of an image.
        things: the labels to keep of those `top`, so that fewer may remain; None keeps all.
        score_threshold: pairs of a lower score are left out before their masks take memory; 0, as in the
            official code, keeps all.

    Returns:
        For each image, best first, `scores` [X] (class probability times the mean mask probability inside
        the mask), `labels` and `queries` [X] int64, `masks` [X, h, w] bool and `boxes` [X, 4] xyxy around
        them in pixels, right and bottom one past the last pixel. An empty mask has score 0 and an empty box.

    Raises:
        ValueError: a size or option does not fit; the message names the argument.
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1; got {top}")
    results = []
    for logits, masks, crop, size in _images(predictions, padded_size, image_sizes, output_sizes):
        # a stable sort rather than top-k: ties go to the first query and class on every device
        scores, pair = logits.softmax(-1)[:, :-1].flatten().sort(descending=True, stable=True)
        classes = logits.shape[1] - 1
        scores, query, labels = scores[:top], pair[:top] // classes, pair[:top] % classes
        # a mask's quality is at most 1; what is not a number is not below anything, and kept
        kept = ~(scores < score_threshold)
        if things is not None:
            kept &= torch.isin(labels, labels.new_tensor(sorted(things)))
        scores, query, labels = scores[kept], query[kept], labels[kept]
        distinct, copy = query.unique(return_inverse=True)
        best = scores.new_zeros(len(distinct)).scatter_reduce(0, copy, scores, "amax")
        quality = torch.zeros_like(best)
        found: dict[int, Tensor] = {}  # of the distinct queries those that are good enough
        for part, maps in slices(masks[distinct], size, padded_size, crop):
            inside = maps > 0
            # rows, then their sums: the same bits for any slicing and number of threads
            total = maps.sigmoid_().mul_(inside).sum(2).sum(1)
            quality[part] = total / (inside.sum((1, 2)) + 1e-6)
            good = part.start + (~(best[part] * quality[part] < score_threshold)).nonzero()[:, 0]
            found |= {n: inside[n - part.start].clone() for n in good.tolist()}
        scores = scores * quality[copy]
        order = torch.argsort(labels, stable=True)
        order = order[torch.argsort(scores[order], descending=True, stable=True)]
        order = order[~(scores[order] < score_threshold)]
        inside = masks.new_empty(len(order), *size, dtype=torch.bool)
        for row, n in zip(inside, copy[order].tolist(), strict=True):
            row.copy_(found[n])
        results.append(
            {
                "scores": scores[order],
                "labels": labels[order],
                "queries": query[order],
                "masks": inside,
                "boxes": tight_boxes(inside),
            }
        )
    return results


@torch.no_grad()
def postprocess_panoptic(
    predictions: MaskPredictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    things: Collection[int],
    mask_threshold: float = 0.8,
    overlap: float = 0.8,
    pixel_threshold: float | None = 0.5,
) -> list[dict[str, Any]]:
    """Segments that do not overlap: each pixel goes to the query with the best class times mask probability.

    Args:
        predictions: see `postprocess_semantic`.
        padded_size: see `postprocess_semantic`.
        image_sizes: see `postprocess_semantic`.
        output_sizes: see `postprocess_semantic`.
        things: the labels whose segments stay apart; segments of any other label become one.
        mask_threshold: the class probability above which a query takes part.
        overlap: a query must win at least this share of the pixels where its own mask probability is 0.5 or
            more.
        pixel_threshold: mask probability that a pixel needs besides (Mask2Former: 0.5); None gives a segment
            every pixel that its query wins (MaskFormer).

    Returns:
        For each image `segmentation` [h, w] int32 of segment ids, 0 = no segment, and `segments`, a list of
        {"id", "label", "isthing", "score" (class probability), "area", "query"}; score and query are those
        of the surest of merged queries.

    Raises:
        ValueError: a size or option does not fit; the message names the argument.
    """
    results = []
    for logits, masks, crop, size in _images(predictions, padded_size, image_sizes, output_sizes):
        scores, labels = logits.softmax(-1).max(-1)
        kept = ((labels != logits.shape[1] - 1) & (scores > mask_threshold)).nonzero()[:, 0]
        if not len(kept):
            nothing = torch.zeros(size, dtype=torch.int32, device=masks.device)
            results.append({"segmentation": nothing, "segments": []})
            continue
        scores, labels = scores[kept], labels[kept]
        best = torch.full(size, -1.0, dtype=masks.dtype, device=masks.device)
        winner = torch.full(size, len(kept), dtype=torch.int32, device=masks.device)
        sure = torch.zeros(size, dtype=torch.bool, device=masks.device)  # of the winner
        claimed = []
        for part, maps in slices(masks[kept], size, padded_size, crop):
            for query, probability in zip(range(part.start, part.stop), maps.sigmoid_(), strict=True):
                claimed.append((probability >= 0.5).sum())
                value = scores[query] * probability
                better = value > best
                torch.where(better, value, best, out=best)
                winner.masked_fill_(better, query)
                if pixel_threshold is not None:
                    torch.where(better, probability >= pixel_threshold, sure, out=sure)
        won = winner.flatten().bincount(minlength=len(kept) + 1)
        if pixel_threshold is not None:
            winner.masked_fill_(~sure, len(kept))
        area = winner.flatten().bincount(minlength=len(kept) + 1)
        columns = (kept, labels, scores, torch.stack(claimed), won[:-1], area[:-1])
        claims = map(_Claim, *(column.tolist() for column in columns))
        ids, segments = _segments(claims, frozenset(things), overlap)
        table = torch.tensor([*ids, 0], dtype=torch.int32, device=masks.device)
        segmentation = table.index_select(0, winner.flatten()).view(size)
        results.append({"segmentation": segmentation, "segments": segments})
    return results


class _Claim(NamedTuple):
    """A query in the contest for pixels: how many its mask has, it won and it keeps."""

    query: int
    label: int
    score: float
    claimed: int
    won: int
    area: int


def _segments(
    claims: Iterable[_Claim], things: frozenset[int], overlap: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """The segment id of each query, 0 = none; and all segments."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for claim in claims:
        if not claim.area or not claim.claimed or claim.won / claim.claimed < overlap:
            ids.append(0)
            continue
        segment = stuff.get(claim.label)
        if segment is None:
            isthing = claim.label in things
            segment = {
                "id": len(segments) + 1,
                "label": claim.label,
                "isthing": isthing,
                "score": -1,
                "area": 0,
            }
            segments.append(segment)
            if not isthing:
                stuff[claim.label] = segment
        segment["area"] += claim.area
        if claim.score > segment["score"]:
            segment.update(score=claim.score, query=claim.query)
        ids.append(segment["id"])
    return ids, segments


def _images(
    predictions: MaskPredictions | Mapping[str, Any],
    padded_size: Size,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
) -> Iterator[tuple[Tensor, Tensor, Size, Size]]:
    """Class logits [Q, K + 1] and mask logits [Q, h, w], float32 at least, and both sizes of each image."""
    predictions = MaskPredictions.of(predictions)
    logits, masks = predictions.logits[-1], predictions.masks[-1]
    sizes = checked_sizes(len(logits), padded_size, image_sizes, output_sizes)
    for image, (crop, size) in enumerate(sizes):
        wide = torch.promote_types(logits.dtype, torch.float32)
        yield logits[image].to(wide), masks[image].to(wide), crop, size


def checked_sizes(
    images: int, padded_size: Size, image_sizes: Sequence[Size], output_sizes: Sequence[Size]
) -> list[tuple[Size, Size]]:
    """Size in the batch and of the result, for each image; ValueError where they cannot be."""
    for name, sizes in (("image_sizes", image_sizes), ("output_sizes", output_sizes)):
        if len(sizes) != images:
            raise ValueError(f"{name}: expected one (height, width) for each of {images} images; got {sizes}")
        for size in sizes:
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"{name}: expected (height, width) of at least 1; got {tuple(size)}")
    for size in image_sizes:
        if size[0] > padded_size[0] or size[1] > padded_size[1]:
            raise ValueError(f"image_sizes: expected at most padded_size = {padded_size}; got {tuple(size)}")
    return [(_size(crop), _size(size)) for crop, size in zip(image_sizes, output_sizes, strict=True)]


def _class_scores(logits: Tensor, masks: Tensor, size: Size, padded_size: Size, crop: Size) -> Tensor:
    """[K, *size], the sum over queries of class times mask probability."""
    classes = logits.softmax(-1)[:, :-1].T
    scores = classes.new_zeros(len(classes), size[0] * size[1])
    few = max(1, 2**24 // scores.shape[1])  # more than one: each sum reads and writes all scores
    for part, maps in slices(masks, size, padded_size, crop, few):
        scores.addmm_(classes[:, part], maps.sigmoid_().flatten(1))
    return scores.unflatten(1, size)


def _check_resize(resize: str) -> None:
    if resize not in ("after", "before"):
        raise ValueError(f"resize: expected 'after' or 'before'; got {resize!r}")


def _size(size: Sequence[int]) -> Size:
    return int(size[0]), int(size[1])


def slices(
    masks: Tensor, size: Size, padded_size: Size, crop: Size, few: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Which masks [Q, h, w] of the padded batch, and those at the size of the result, [few, *size]."""
    few = few or at_once(size, masks.device)
    for start in range(0, len(masks), few):
        part = slice(start, min(start + few, len(masks)))
        yield part, _resized(masks[part], padded_size, crop, size)


def at_once(size: Size, device: torch.device) -> int:
    """How many maps of a size are worked on together.

    On a CPU one, which stays in its cache; there bilinear resizing also rounds by the number of maps.
    """
    return 1 if device.type == "cpu" else max(1, 2**24 // (size[0] * size[1]))


def _resized(masks: Tensor, padded_size: Size, crop: Size, size: Size) -> Tensor:
    """[Q, h, w] of the padded batch -> [Q, *size] of the image, never the input's memory."""
    maps = _bilinear(masks, padded_size)[:, : crop[0], : crop[1]]
    maps = _bilinear(maps, size)
    return maps.clone() if maps.data_ptr() == masks.data_ptr() else maps


def _bilinear(maps: Tensor, size: Size) -> Tensor:
    """[X, h, w] -> [X, *size]; maps of that size are returned as they are."""
    if maps.shape[1:] == size or not len(maps):
        return maps if len(maps) else maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _bands(maps: Tensor, size: Size) -> Iterator[tuple[slice, Tensor]]:
    """A few rows at a time of `_bilinear(maps, size)`, in memory of their own."""
    height, step = maps.shape[1], max(1, 2**22 // (len(maps) * size[1]))
    at = ((torch.arange(size[0], device=maps.device) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    above = at.long()
    below = (above + 1).clamp(max=height - 1)
    for start in range(0, size[0], step):
        rows = slice(start, min(start + step, size[0]))
        share = (at - above).to(maps.dtype)[rows, None]
        band = torch.lerp(maps[:, above[rows]], maps[:, below[rows]], share)
        yield rows, _bilinear(band, (band.shape[1], size[1]))
