"""COCO's twelve detection numbers."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from detr_fast.data import CocoDetection, build_loader
from detr_fast.engine.distributed import gather, rank, world_size
from detr_fast.engine.metrics.coco import coco_detections, coco_metrics
from detr_fast.engine.progress import progress
from detr_fast.postprocess import postprocess_detection


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
