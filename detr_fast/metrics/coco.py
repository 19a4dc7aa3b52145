"""COCO's twelve numbers of boxes or masks, as pycocotools counts them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

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
    image_id: int, result: Mapping[str, Tensor], label_to_category: Mapping[int, int]
) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format.

    Labels that stand for no category of the data set (COCO's ids have gaps) are left out.

    result: `scores` [X], `labels` [X], `boxes` [X, 4] xyxy in pixels, and for `segmentation` entries `masks`
        [X, h, w] bool, all at the image's original size.
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


def coco_metrics(
    annotation_file: str | Path,
    detections: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int] | None = None,
    kind: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """The twelve numbers of detections in COCO's result format, on all images of the file or some.

    kind: "bbox" compares the boxes, "segm" the masks (`segmentation`: run lengths or polygons). Small, medium
        and large detections are told apart by the area of what is compared.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl. A number is -1 where there is
        no ground truth of that size, and 0 where there is but nothing was predicted.
    """
    key = {"bbox": "bbox", "segm": "segmentation"}.get(kind)
    if key is None:
        raise ValueError(f"kind: expected 'bbox' or 'segm'; got {kind!r}")
    for i, detection in enumerate(detections):
        if key not in detection:
            raise ValueError(f"detections[{i}]: expected {key!r} for kind={kind!r}; got {sorted(detection)}")
    # pycocotools prints its progress, and its loadRes fails where nothing was detected.
    with redirect_stdout(io.StringIO()):
        truth, found = COCO(str(annotation_file)), COCO()
        found.dataset = {
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": [
                {**detection, "id": i, "area": _area(detection, truth, kind), "iscrowd": 0}
                for i, detection in enumerate(detections, start=1)
            ],
        }
        found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_NUMBERS, map(float, evaluation.stats), strict=True))


def _area(detection: Mapping[str, Any], truth: COCO, kind: str) -> float:
    if kind == "bbox":
        return detection["bbox"][2] * detection["bbox"][3]
    return float(rle.area(truth.annToRLE(detection)))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The twelve lines in which pycocotools prints them."""
    return "\n".join(
        f" {title:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] "
        f"= {metrics[name]:0.3f}"
        for name, (title, kind, iou, area, most) in _NUMBERS.items()
    )
