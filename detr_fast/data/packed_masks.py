"""COCO segmentations of many objects, checked when read, kept in a few arrays and drawn when needed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from detr_fast.data.coco_json import short

# pycocotools walks along every edge in steps of a fifth of a pixel: one absurd corner would take all memory.
MAX_COORDINATE = 1e5
MAX_OUTLINE = 3e6
ARRAYS = ("mask_numbers", "mask_polygon_ends", "mask_runs", "mask_spans")


class PackedMasks:
    """Polygons and run-length encodings. Forked workers share the arrays without copying them.

    An object is found again by its number, counted from 0 in the order of `append`.
    """

    def __init__(self) -> None:
        self._numbers: Any = array("d")  # x0, y0, x1, y1, ... of all polygons
        self._polygon_ends: Any = array("q", [0])  # polygon p: numbers[ends[p]:ends[p + 1]]
        self._runs: Any = bytearray()  # compressed run lengths of all encodings
        self._spans: Any = array("q")  # for each object: 1 if encoded, and its range of polygons or of bytes

    def __len__(self) -> int:
        return len(self._spans) // 3

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that it holds, for `from_arrays`."""
        held = self._numbers, self._polygon_ends, self._runs, self._spans
        dtypes = np.float64, np.int64, np.uint8, np.int64
        return {
            name: np.frombuffer(values, dtype)
            for name, values, dtype in zip(ARRAYS, held, dtypes, strict=True)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PackedMasks:
        """Masks to be drawn; nothing can be appended. The arrays are not copied."""
        masks = cls()
        masks._numbers, masks._polygon_ends, masks._runs, masks._spans = (arrays[name] for name in ARRAYS)
        return masks

    def append(self, segmentation: Any, size: tuple[int, int]) -> bool:
        """Takes in one `segmentation`; False, and nothing taken in, where it cannot cover a pixel: it is
        missing or empty, all its polygons have fewer than three points, or its runs enclose nothing.

        Polygons with fewer than three points beside proper ones are left out.

        Args:
            segmentation: a list of polygons [x0, y0, x1, y1, ...] or a run-length encoding.
            size: the image's (height, width).

        Raises:
            ValueError: it is neither, a coordinate is not a sensible number, or the encoding does not decode
                or has another size than the image.
        """
        if segmentation is None or segmentation == []:
            return False
        if isinstance(segmentation, list):
            return self._append_polygons(segmentation)
        if isinstance(segmentation, dict) and "counts" in segmentation:
            return self._append_runs(segmentation, size)
        raise ValueError(
            "expected 'segmentation' as a list of polygons or an object with 'counts' and 'size'; "
            f"got {short(segmentation)}"
        )

    def append_object(self, segmentation: Any, size: tuple[int, int], crowd_box: NDArray[np.float64]) -> int:
        """The number that an object gets, -1 where it has no mask; otherwise as `append`.

        `crowd_box`, [x, y, w, h] of a crowd and NaN of others, stands in for a mask.
        """
        taken = self.append(segmentation, size)
        if not taken and np.isfinite(crowd_box).all():
            x, y, w, h = crowd_box.tolist()
            taken = self.append([[x, y, x + w, y, x + w, y + h, x, y + h]], size)
        return len(self) - 1 if taken else -1

    def extend(
        self,
        segmentations: Sequence[list[list[float]] | dict[str, Any] | None],
        sizes: NDArray[np.int64],
        crowd_boxes: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """As `append_object` for many, polygons all at once.

        Args:
            segmentations: of X objects.
            sizes: [X, 2] (height, width) of their images.
            crowd_boxes: [X, 4], NaN where an object is none.

        Returns:
            [X] numbers, in another order than one by one.
        """
        outlined = [i for i, segmentation in enumerate(segmentations) if type(segmentation) is list]
        numbers = np.full(len(segmentations), -1, np.int64)
        numbers[outlined], done = self._extend_polygons([segmentations[i] for i in outlined])  # type: ignore[misc]
        left = np.ones(len(segmentations), bool)
        if done:
            left[outlined] = False
            left |= (numbers < 0) & np.isfinite(crowd_boxes).all(1)
        for i in np.flatnonzero(left).tolist():
            height, width = sizes[i].tolist()
            numbers[i] = self.append_object(segmentations[i], (height, width), crowd_boxes[i])
        return numbers

    def _extend_polygons(self, objects: Sequence[list[list[float]]]) -> tuple[NDArray[np.int64], bool]:
        """The numbers of objects, and whether they were taken: not where a polygon needs a closer look."""
        polygons = list(chain.from_iterable(objects))
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        points = np.fromiter(chain.from_iterable(polygons), np.float64, int(lengths.sum()))
        numbers = np.full(len(objects), -1, np.int64)
        largest = np.abs(points).max(initial=0)
        long = 2 * largest * lengths.max(initial=0) > MAX_OUTLINE
        if (lengths % 2).any() or long or not largest <= MAX_COORDINATE:
            return numbers, False
        proper = lengths >= 6
        owner = np.repeat(np.arange(len(objects)), np.fromiter(map(len, objects), np.int64, len(objects)))
        counts = np.bincount(owner[proper], minlength=len(objects))
        points = points[np.repeat(proper, lengths)]
        covered, first = counts > 0, len(self._polygon_ends) - 1
        last = first + counts.cumsum()
        spans = np.stack([np.zeros_like(last), last - counts, last], 1)[covered]
        numbers[covered] = len(self) + np.arange(covered.sum())
        self._polygon_ends.frombytes((self._polygon_ends[-1] + lengths[proper].cumsum()).tobytes())
        self._numbers.frombytes(points.tobytes())
        self._spans.frombytes(spans.tobytes())
        return numbers, True

    def _append_polygons(self, polygons: list[Any]) -> bool:
        first = len(self._polygon_ends) - 1
        checked = [(polygon, _points(polygon)) for polygon in polygons]
        for i, (polygon, points) in enumerate(checked):
            if points is None:
                raise ValueError(
                    f"segmentation[{i}]: expected a polygon [x0, y0, x1, y1, ...] of numbers within "
                    f"{MAX_COORDINATE:.0f} pixels, its outline within {MAX_OUTLINE:.0f}; got {short(polygon)}"
                )
            if len(points) >= 6:
                self._numbers.frombytes(points.tobytes())
                self._polygon_ends.append(len(self._numbers))
        last = len(self._polygon_ends) - 1
        if last > first:
            self._spans.extend((0, first, last))
        return last > first

    def _append_runs(self, encoding: dict[str, Any], size: tuple[int, int]) -> bool:
        if encoding.get("size") not in (list(size), size):
            raise ValueError(
                f"the run-length encoding is for a mask of [height, width] = "
                f"{short(encoding.get('size'))}, but the image has {list(size)}"
            )
        counts = encoding["counts"]
        if isinstance(counts, bytes):  # as pycocotools returns them
            counts = counts.decode("latin-1")
        runs = _listed_runs(counts) if isinstance(counts, list) else _decoded_runs(counts)
        if runs is None or (runs < 0).any() or runs.sum() != size[0] * size[1]:
            raise ValueError(
                f"the run-length encoding does not decode to {size[0]} x {size[1]} pixels: {short(counts)}"
            )
        if not runs[1::2].any():
            return False
        start = len(self._runs)
        if isinstance(counts, list):
            self._runs += coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
        else:
            self._runs += counts.encode("ascii")
        self._spans.extend((1, start, len(self._runs)))
        return True

    def draw(self, objects: Iterable[int], size: tuple[int, int]) -> Tensor:
        """The masks of some objects of an image of (height, width) -> [T, height, width] bool, pixel by
        pixel as pycocotools draws them."""
        encodings = [self.encoding(number, size) for number in objects]
        if not encodings:
            return torch.zeros(0, *size, dtype=torch.bool)
        masks = coco_mask.decode(encodings).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(masks)).bool()

    def bounds(self, number: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """The box around an object as [x, y, w, h] in pixels: around its corners or its encoded pixels."""
        encoded, start, end = self._spans[3 * number : 3 * number + 3]
        if encoded:
            return coco_mask.toBbox(self.encoding(number, size)).astype(np.float64)
        numbers = self._numbers[self._polygon_ends[start] : self._polygon_ends[end]]
        points = np.array(numbers).reshape(-1, 2)
        return np.concatenate([points.min(0), points.max(0) - points.min(0)])

    def encoding(self, number: int, size: tuple[int, int]) -> dict[str, Any]:
        """An object of an image of (height, width) as pycocotools' compressed run lengths."""
        encoded, start, end = self._spans[3 * number : 3 * number + 3]
        if encoded:
            return {"size": size, "counts": bytes(self._runs[start:end])}
        ends = self._polygon_ends
        polygons = [self._numbers[ends[p] : ends[p + 1]].tolist() for p in range(start, end)]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def _points(polygon: Any) -> NDArray[np.float64] | None:
    """The coordinates one after another; None where it is no polygon that can be drawn."""
    if not isinstance(polygon, list) or len(polygon) % 2 or not set(map(type, polygon)) <= {int, float}:
        return None
    try:
        points = np.array(polygon, dtype=np.float64)
    except OverflowError:
        return None
    largest = np.abs(points).max(initial=0)
    if not largest <= MAX_COORDINATE:
        return None
    could_be_long = 2 * largest * len(points) > MAX_OUTLINE
    return None if could_be_long and np.abs(points - np.roll(points, 2)).sum() > MAX_OUTLINE else points


def _listed_runs(counts: list[Any]) -> NDArray[np.int64] | None:
    if not counts or any(type(count) is not int or not 0 <= count < 2**32 for count in counts):
        return None
    return np.array(counts, dtype=np.int64)


def _decoded_runs(counts: Any) -> NDArray[np.int64] | None:
    """The run lengths of COCO's compressed form; None where it is none.

    pycocotools reads past the end of a damaged string, so it is decoded here before pycocotools sees it.
    A character carries five bits, lowest first, and a bit that more follow; the last one's top bit is the
    sign. From the fourth run on, the difference to the run two before is stored.
    """
    try:
        data = counts.encode("ascii")
    except (AttributeError, UnicodeEncodeError):
        return None
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
