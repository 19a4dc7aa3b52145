"""Panoptic quality (Kirillov et al. 2019, arXiv:1801.00868, section 4), by the rules of COCO's evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = Tensor | npt.NDArray[Any]


@dataclass
class ClassQuality:
    """What was counted for one class: the sum of IoUs over matched segments, and how many segments
    matched (`tp`), were predicted in vain (`fp`) and were missed (`fn`)."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def quality(self) -> tuple[float, float, float]:
        """PQ, SQ and RQ, with PQ = SQ * RQ; needs at least one segment."""
        segments = self.tp + 0.5 * (self.fp + self.fn)
        return self.iou / segments, self.iou / self.tp if self.tp else 0.0, self.tp / segments


class PanopticQuality:
    """PQ, SQ and RQ of panoptic predictions, image after image.

    A predicted and a true segment of the same class match where their IoU exceeds 0.5. Pixels without truth
    (void) do not count in the union; crowds match nothing. A prediction without a match is not held against
    the model where more than half of it is void or a crowd of its own class.

    Several of these, of images apart, merge into one; they can be pickled.

    Args:
        things: the labels of countable objects.
        stuff: all other labels.
    """

    def __init__(self, things: Collection[int], stuff: Collection[int]) -> None:
        self.things, self.stuff = frozenset(things), frozenset(stuff)
        if both := self.things & self.stuff:
            raise ValueError(f"things, stuff: expected no label in both; got {sorted(both)}")
        self.classes = {label: ClassQuality() for label in sorted(self.things | self.stuff)}

    def update(
        self,
        predicted_ids: Ids,
        predicted_segments: Sequence[Mapping[str, Any]],
        true_ids: Ids,
        true_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Counts one image.

        Predicted segments whose label is no class (raw ids have gaps) are left out.

        Args:
            predicted_ids: [h, w] integers, the segment of each pixel, 0 = none.
            predicted_segments: {"id", "label"} of each segment; all have pixels.
            true_ids: [h, w] integers as well.
            true_segments: {"id", "label"} and for a crowd "iscrowd"; one without pixels counts as missed.

        Raises:
            ValueError: sizes differ, a map has ids without a segment, two segments share an id, a predicted
                segment has no pixels or a true one an unknown label.
        """
        found, truth = _map(predicted_ids, "predicted_ids"), _map(true_ids, "true_ids")
        if found.shape != truth.shape:
            raise ValueError(f"predicted_ids: expected [h, w] of true_ids, {truth.shape}; got {found.shape}")
        predicted = _by_id(predicted_segments, "predicted_segments")
        true = _by_id(true_segments, "true_segments")
        for number, segment in true.items():
            if segment["label"] not in self.classes:
                raise ValueError(f"true_segments: segment {number} has the unknown label {segment['label']}")
        overlaps = _overlaps(found, truth, predicted, true)
        area, true_area = _areas(overlaps, 0), _areas(overlaps, 1)
        if missing := predicted.keys() - area.keys():
            raise ValueError(f"predicted_segments: the ids {sorted(missing)} have no pixels in predicted_ids")
        predicted = {n: segment for n, segment in predicted.items() if segment["label"] in self.classes}

        # pixels of each prediction that are void, and those that are so or a crowd of its class
        void = {number: overlaps.get((number, 0), 0) for number in predicted}
        forgiven, matched, matched_true = dict(void), set(), set()
        for (number, true_number), pixels in overlaps.items():
            if number not in predicted or not true_number:
                continue
            label, target = predicted[number]["label"], true[true_number]
            if target["label"] != label:
                continue
            if target.get("iscrowd", 0):
                forgiven[number] += pixels
                continue
            union = area[number] + true_area[true_number] - pixels - void[number]
            if 2 * pixels > union:
                matched.add(number)
                matched_true.add(true_number)
                self.classes[label].tp += 1
                self.classes[label].iou += pixels / union
        for number, segment in true.items():
            if number not in matched_true and not segment.get("iscrowd", 0):
                self.classes[segment["label"]].fn += 1
        for number, segment in predicted.items():
            if number not in matched and 2 * forgiven[number] <= area[number]:
                self.classes[segment["label"]].fp += 1

    def merge(self, other: PanopticQuality) -> None:
        """Adds what another one counted on other images."""
        if (self.things, self.stuff) != (other.things, other.stuff):
            raise ValueError("other: expected the same things and stuff")
        for label, counted in other.classes.items():
            mine = self.classes[label]
            mine.iou += counted.iou
            mine.tp += counted.tp
            mine.fp += counted.fp
            mine.fn += counted.fn

    def result(self) -> dict[str, float]:
        """PQ, SQ and RQ, each a mean over the classes that occur: all, things (`_th`) and stuff (`_st`).

        -1 where none of those classes occurs, as COCO's detection numbers have it.
        """
        numbers = {}
        per_class = self.per_class()
        for suffix, labels in (("", self.things | self.stuff), ("_th", self.things), ("_st", self.stuff)):
            for name in ("PQ", "SQ", "RQ"):
                values = [quality[name] for label, quality in per_class.items() if label in labels]
                numbers[name + suffix] = sum(values) / len(values) if values else -1.0
        return numbers

    def per_class(self) -> dict[int, dict[str, float]]:
        """PQ, SQ and RQ of each label that was true or predicted somewhere."""
        return {
            label: dict(zip(("PQ", "SQ", "RQ"), counted.quality, strict=True))
            for label, counted in self.classes.items()
            if counted.tp or counted.fp or counted.fn
        }


def _map(ids: Ids, name: str) -> npt.NDArray[np.int64]:
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected [h, w] integers; got {list(array.shape)} {array.dtype}")
    return array.astype(np.int64)


def _by_id(segments: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, Any]]:
    by_id = {int(segment["id"]): segment for segment in segments}
    if len(by_id) != len(segments) or 0 in by_id:
        raise ValueError(
            f"{name}: expected distinct ids other than 0; got {[segment['id'] for segment in segments]}"
        )
    return by_id


def _overlaps(
    found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], predicted: Iterable[int], true: Iterable[int]
) -> dict[tuple[int, int], int]:
    """How many pixels each pair of a predicted and a true id shares."""
    ids, index = _indices(found, predicted, "predicted")
    true_ids, true_index = _indices(truth, true, "true")
    shape = (len(ids), len(true_ids))
    pairs = np.bincount((index * shape[1] + true_index).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    return {(int(ids[i]), int(true_ids[j])): int(pairs[i, j]) for i, j in zip(*pairs.nonzero(), strict=True)}


def _indices(
    pixels: npt.NDArray[np.int64], ids: Iterable[int], name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids and 0 in ascending order, and for every pixel the place of its id among them."""
    known = np.array(sorted({0, *ids}))
    index = np.searchsorted(known, pixels).clip(max=len(known) - 1)
    strange = pixels[known[index] != pixels]
    if len(strange):
        raise ValueError(f"{name}_ids: the ids {np.unique(strange).tolist()} are not among {name}_segments")
    return known, index


def _areas(overlaps: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    areas: dict[int, int] = {}
    for pair, pixels in overlaps.items():
        areas[pair[side]] = areas.get(pair[side], 0) + pixels
    return areas
