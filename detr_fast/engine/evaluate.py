"""COCO's twelve detection numbers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from detr_fast.data import CocoDetection, build_loader
from detr_fast.engine.distributed import gather, rank, world_size
from detr_fast.engine.progress import progress
from detr_fast.postprocess import postprocess_detection

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


@torch.no_grad()
def evaluate_detection(
    model: nn.Module,
    dataset: CocoDetection,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 2,
    num_workers: int = 0,
    amp: bool = False,
) -> dict[str, float]:
    """Evaluates boxes on a whole data set as pycocotools does.

    In a distributed run each rank predicts its share of the images, every image once, and all get the result.

    Args:
        model: maps `PaddedImages` to `Predictions`; it runs in eval mode and is left in the mode it was in.
        dataset: with evaluation transforms (`build_detection_dataset(..., train=False)`).
        device: where the model is.
        batch_size: images a process.
        num_workers: processes that read images.
        amp: predict under bfloat16 autocast.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl. A number is -1 where there is
        no ground truth of that size, and 0 where there is but nothing was predicted.
    """
    device = torch.device(device)
    loader = build_loader(
        dataset, batch_size, train=False, num_workers=num_workers, rank=rank(), world_size=world_size()
    )
    training = model.training
    model.eval()
    detections: list[dict[str, Any]] = []
    for images, targets in progress(loader, desc="evaluate", unit="batch"):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            predictions = model(images.to(device))
        sizes = torch.stack([target["orig_size"] for target in targets])
        results = postprocess_detection(predictions, sizes.to(device))
        for target, result in zip(targets, results, strict=True):
            detections += coco_detections(int(target["image_id"]), result, dataset.label_to_category)
    model.train(training)
    everything = list(chain.from_iterable(gather(detections)))
    return coco_metrics(dataset.annotation_file, everything)


def coco_detections(
    image_id: int, result: dict[str, Tensor], label_to_category: dict[int, int]
) -> list[dict[str, Any]]:
    """One image's `postprocess_detection` result in COCO's result format.

    Labels that stand for no category of the data set (COCO's ids have gaps) are left out.
    """
    x0, y0, x1, y1 = result["boxes"].float().cpu().unbind(-1)
    boxes = torch.stack([x0, y0, x1 - x0, y1 - y0], -1).tolist()
    rows = zip(result["scores"].tolist(), result["labels"].tolist(), boxes, strict=True)
    return [
        {"image_id": image_id, "category_id": label_to_category[label], "bbox": box, "score": score}
        for score, label, box in rows
        if label in label_to_category
    ]


def coco_metrics(
    annotation_file: str | Path, detections: Sequence[dict[str, Any]], image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """The twelve numbers of detections in COCO's result format, on all images of the file or some."""
    # pycocotools prints its progress, and its loadRes fails where nothing was detected.
    with redirect_stdout(io.StringIO()):
        truth, found = COCO(str(annotation_file)), COCO()
        found.dataset = {
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": [
                {**detection, "id": i, "area": detection["bbox"][2] * detection["bbox"][3], "iscrowd": 0}
                for i, detection in enumerate(detections, start=1)
            ],
        }
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_NUMBERS, map(float, evaluation.stats), strict=True))


def format_metrics(metrics: dict[str, float]) -> str:
    """The twelve lines in which pycocotools prints them."""
    return "\n".join(
        f" {title:<18} ({kind}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] "
        f"= {metrics[name]:0.3f}"
        for name, (title, kind, iou, area, most) in _NUMBERS.items()
    )
