"""COCO's numbers of boxes or masks, as pycocotools counts them; hotcoco counts the same faster."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from detr_fast.data.coco_json import ImageId, as_int, find_image, short
from detr_fast.data.instances import Instances, read_instances
from detr_fast.data.packed_masks import PackedMasks

Kind: TypeAlias = Literal["bbox", "segm"]
Evaluator: TypeAlias = Literal["auto", "hotcoco", "pycocotools"]

# The order of COCOeval.stats: name, the words of COCO's table (metric, IoU, area, detections an image).
_NUMBERS = {
    "AP": ("Average Precision", "AP", "0.50:0.95", "all", 100),
    "AP50": ("Average Precision", "AP", "0.50", "all", 100),
    "AP75": ("Average Precision", "AP", "0.75", "all", 100),
    "APs": ("Average Precision", "AP", "0.50:0.95", "small", 100),
    "APm": ("Average Precision", "AP", "0.50:0.95", "medium", 100),
    "APl": ("Average Precision", "AP", "0.50:0.95", "large", 100),
    "AR1": ("Average Recall", "AR", "0.50:0.95", "all", 1),
    "AR10": ("Average Recall", "AR", "0.50:0.95", "all", 10),
    "AR100": ("Average Recall", "AR", "0.50:0.95", "all", 100),
    "ARs": ("Average Recall", "AR", "0.50:0.95", "small", 100),
    "ARm": ("Average Recall", "AR", "0.50:0.95", "medium", 100),
    "ARl": ("Average Recall", "AR", "0.50:0.95", "large", 100),
}


def coco_detections(
    image_id: ImageId, result: Mapping[str, Tensor], label_to_category: Mapping[int, int]
) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format.

    Labels that stand for no category of the data set (COCO's ids have gaps) are left out.

    Args:
        image_id: as the annotation file has it.
        result: `scores` [X], `labels` [X], `boxes` [X, 4] xyxy in pixels, and for `segmentation` entries
            `masks` [X, h, w] bool, all at the image's original size.
        label_to_category: the category id of each label.
    """
    x0, y0, x1, y1 = result["boxes"].float().cpu().unbind(-1)
    boxes = torch.stack([x0, y0, x1 - x0, y1 - y0], -1).tolist()
    rows = [
        {"image_id": image_id, "category_id": label_to_category.get(label), "bbox": box, "score": score}
        for score, label, box in zip(result["scores"].tolist(), result["labels"].tolist(), boxes, strict=True)
    ]
    if "masks" in result:
        for row, mask in zip(rows, result["masks"], strict=True):
            if row["category_id"] is not None:
                row["segmentation"] = encode_mask(mask)
    return [row for row in rows if row["category_id"] is not None]


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """[h, w] bool -> COCO's compressed run lengths {"size": [h, w], "counts": str}."""
    if mask.ndim != 2:
        raise ValueError(f"mask: expected [h, w]; got {list(mask.shape)}")
    encoded = rle.encode(np.asfortranarray(mask.to("cpu", torch.uint8).numpy()))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@dataclass(frozen=True)
class CocoEvaluation:
    """What COCO's protocol says of detections.

    Attributes:
        metrics: the twelve numbers, as `coco_metrics` returns them.
        categories: id and name of each category, in the order of what follows.
        precision: [10, 101, K] at the IoUs 0.5, 0.55, ... 0.95 and the recalls 0, 0.01, ... 1, of objects of
            any area and 100 detections an image; -1 where a category has no ground truth.
        confusion: [K + 1, K + 1] objects by category (rows) and category of the detection that found them
            (columns) at an IoU and from a score of 0.5 on, the last row of detections that found nothing and
            the last column of objects that were not found; None without hotcoco.
    """

    metrics: dict[str, float]
    categories: dict[int, str]
    precision: NDArray[np.float64]
    confusion: NDArray[np.int64] | None

    def by_category(self) -> dict[int, tuple[float, float]]:
        """AP and AP50 of each category that has ground truth."""
        curves = zip(self.categories, np.moveaxis(self.precision, -1, 0), strict=True)
        return {
            category: (float(precision.mean()), float(precision[0].mean()))
            for category, precision in curves
            if precision[0, 0] > -1
        }


def coco_metrics(
    annotations: str | Path | Instances,
    detections: Iterable[Mapping[str, Any]],
    image_ids: Iterable[ImageId] | None = None,
    kind: Kind = "bbox",
    evaluator: Evaluator = "auto",
) -> dict[str, float]:
    """The twelve numbers of detections in COCO's result format, on all images of the file or some.

    The ground truth is what training goes by (`read_instances`): boxes are cut to the image, objects without
    an area or, for "segm", without a pixel are no truth.

    Args:
        annotations: an `instances` file, or what `read_instances` made of it.
        detections: their `image_id` and `category_id` are the file's.
        image_ids: by default all.
        kind: "bbox" compares the boxes, "segm" the masks (`segmentation`: run lengths or polygons). Small,
            medium and large detections are told apart by the area of what is compared.
        evaluator: who counts: "hotcoco", which is many times faster, "pycocotools", or "auto": the first that
            is installed. Both give the same numbers.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl. A number is -1 where there is
        no ground truth of that size, and 0 where there is but nothing was predicted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not usable; a detection lacks something, is not finite, or has an image or a
            category that is not in the file.
        ModuleNotFoundError: the evaluator is not installed.
    """
    return coco_evaluation(annotations, detections, image_ids, kind, evaluator).metrics


def coco_evaluation(
    annotations: str | Path | Instances,
    detections: Iterable[Mapping[str, Any]],
    image_ids: Iterable[ImageId] | None = None,
    kind: Kind = "bbox",
    evaluator: Evaluator = "auto",
) -> CocoEvaluation:
    """As `coco_metrics`, with what stands behind the numbers: curves and confusions of categories."""
    key = {"bbox": "bbox", "segm": "segmentation"}.get(kind)
    if key is None:
        raise ValueError(f"kind: expected 'bbox' or 'segm'; got {kind!r}")
    library = _library(evaluator)
    detections = list(detections)
    for i, detection in enumerate(detections):
        if missing := [name for name in ("image_id", "category_id", "score", key) if name not in detection]:
            raise ValueError(
                f"detections[{i}]: expected {', '.join(map(repr, missing))} for kind={kind!r}; "
                f"got {short(detection)}"
            )
    if not isinstance(annotations, Instances):
        annotations = read_instances(annotations, segmentations=kind == "segm")
    if kind == "segm" and annotations.masks is None:
        raise ValueError("annotations: expected instances with segmentations for kind='segm'")
    categories = annotations.categories
    positions = annotations.images.positions()
    # pycocotools prints its progress, and its loadRes fails where nothing was detected.
    with redirect_stdout(io.StringIO()):
        truth, found = library.COCO(), library.COCO()
        sizes = enumerate(annotations.images.sizes)
        images = [{"id": position, "width": width, "height": height} for position, (width, height) in sizes]
        truth_rows, found_rows = _truth(annotations, kind), _found(annotations, detections, kind)
        for side, rows in ((truth, truth_rows), (found, found_rows)):
            side.dataset = {
                "images": images,
                "categories": [{"id": category, "name": name} for category, name in categories.items()],
                # From 1 on: pycocotools takes the id 0 for no match.
                "annotations": [{**row, "id": i} for i, row in enumerate(rows, start=1)],
            }
            side.createIndex()
        evaluation = library.COCOeval(truth, found, kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted({_position(positions, i, "image_ids") for i in image_ids})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    confusion = None
    if hasattr(evaluation, "confusion_matrix"):
        confusion = evaluation.confusion_matrix(iou_thr=0.5, min_score=0.5)["matrix"].astype(np.int64)
    return CocoEvaluation(
        dict(zip(_NUMBERS, map(float, evaluation.stats), strict=True)),
        categories,
        np.asarray(evaluation.eval["precision"])[..., 0, -1],
        confusion,
    )


# Its threads do not follow a fork, and in the child it waits for them without end.
_hotcoco_ran_in: int | None = None


def _library(evaluator: Evaluator) -> Any:
    """What has COCO and COCOeval."""
    global _hotcoco_ran_in
    if evaluator not in get_args(Evaluator):
        raise ValueError(f"evaluator: expected one of {', '.join(get_args(Evaluator))}; got {evaluator!r}")
    threads_are_here = _hotcoco_ran_in in (None, os.getpid())
    if evaluator == "auto":
        evaluator = "hotcoco" if find_spec("hotcoco") and threads_are_here else "pycocotools"
    if evaluator == "hotcoco":
        if not threads_are_here:
            raise RuntimeError(
                "evaluator: hotcoco ran before this process was forked and would wait for its threads"
            )
        _hotcoco_ran_in = os.getpid()
        return import_module("hotcoco")
    return SimpleNamespace(
        COCO=import_module("pycocotools.coco").COCO, COCOeval=import_module("pycocotools.cocoeval").COCOeval
    )


def _truth(data: Instances, kind: str) -> Iterator[dict[str, Any]]:
    """The ground truth in pycocotools' terms, images by their position."""
    columns = (data.image, data.category, data.boxes_xywh, data.area, data.crowd.astype(int))
    for a, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        row = dict(zip(("image_id", "category_id", "bbox", "area", "iscrowd"), values, strict=True))
        if kind == "segm":
            row["segmentation"] = data.encoding(a)
            if not rle.area(row["segmentation"]):
                continue
        yield row


def _found(data: Instances, detections: Sequence[Mapping[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """The detections in pycocotools' terms, images by their position."""
    positions = data.images.positions()
    for i, detection in enumerate(detections):
        entry = f"detections[{i}]"
        position = _position(positions, detection["image_id"], entry)
        category = as_int(detection["category_id"])
        if category not in data.categories:
            raise ValueError(f"{entry}: category {short(detection['category_id'])} is not in {data.path}")
        score = _finite(detection["score"])
        if score is None:
            raise ValueError(f"{entry}: expected 'score' as a finite number; got {short(detection['score'])}")
        row: dict[str, Any] = {"image_id": position, "category_id": category, "score": score, "iscrowd": 0}
        if kind == "bbox":
            row["bbox"] = box = _box(detection["bbox"], entry)
            row["area"] = box[2] * box[3]
        else:
            width, height = data.images.sizes[position]
            row["segmentation"] = _encoding(detection["segmentation"], (height, width), entry)
            row["area"] = float(rle.area(row["segmentation"]))
        yield row


def _finite(value: Any) -> float | None:
    """A finite number, plain or of numpy or torch."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _box(value: Any, entry: str) -> list[float]:
    try:
        numbers = [_finite(number) for number in value]
    except TypeError:
        numbers = []
    box = [number for number in numbers if number is not None]
    if len(numbers) != 4 or len(box) != 4:
        raise ValueError(f"{entry}: expected 'bbox' as four finite numbers [x, y, w, h]; got {short(value)}")
    return box


def _position(positions: Mapping[ImageId, int], image_id: Any, entry: str) -> int:
    position = find_image(positions, image_id)
    if position is None:
        raise ValueError(f"{entry}: image {short(image_id)} is not in the annotations")
    return position


def _encoding(segmentation: Any, size: tuple[int, int], entry: str) -> dict[str, Any]:
    """Run lengths that pycocotools can be trusted with."""
    mask = PackedMasks()
    try:
        return mask.encoding(0, size) if mask.append(segmentation, size) else _empty(size)
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from None


def _empty(size: tuple[int, int]) -> dict[str, Any]:
    return rle.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The twelve lines in which pycocotools prints them."""
    return "\n".join(
        f" {title:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] "
        f"= {metrics[name]:0.3f}"
        for name, (title, kind, iou, area, most) in _NUMBERS.items()
    )
