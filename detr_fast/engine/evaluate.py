"""Evaluating a model on a data set."""

from __future__ import annotations

import torch

from detr_fast.data import ImageDataset, build_loader
from detr_fast.distributed import rank, world_size
from detr_fast.engine.detector import Detector
from detr_fast.engine.progress import progress
from detr_fast.families.results import Geometry
from detr_fast.tasks import Scorer


def evaluate(
    detector: Detector, dataset: ImageDataset, *, batch_size: int = 2, num_workers: int = 0, amp: bool = False
) -> dict[str, float]:
    """The numbers of the detector's task on a whole data set.

    In a distributed run each rank predicts its share of the images, every image once, and all get the result.

    Args:
        detector: its model runs in eval mode and is left in the mode it was in.
        dataset: of the same task, with evaluation transforms (`build_dataset(..., train=False)`).
        batch_size: images a process.
        num_workers: processes that read images.
        amp: predict under bfloat16 autocast.

    Returns:
        Detection and instance: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl; a number is
        -1 where there is no ground truth of that size, and 0 where there is but nothing was predicted.
        Panoptic: PQ, SQ, RQ and the same of things and stuff. Semantic: mIoU and accuracies.
    """
    return predicted(detector, dataset, batch_size, num_workers, amp).scores().metrics


@torch.no_grad()
def predicted(
    detector: Detector, dataset: ImageDataset, batch_size: int, num_workers: int, amp: bool
) -> Scorer:
    """The task's scorer with the results of this rank's images; arguments as of `evaluate`."""
    loader = build_loader(
        dataset,
        batch_size,
        train=False,
        num_workers=num_workers,
        rank=rank(),
        world_size=world_size(),
        multiple=detector.size_multiple,
    )
    position = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    scorer = detector.task.scorer(dataset, detector.categories)
    training = detector.model.training
    detector.model.eval()
    for images, targets in progress(loader, desc="evaluate", unit="batch"):
        geometry = Geometry.of_batch(images, targets)
        with torch.autocast(detector.device.type, torch.bfloat16, enabled=amp):
            results = detector.results(images.to(detector.device), geometry)
        for target, result in zip(targets, results, strict=True):
            scorer.add(position[int(target["image_id"])], result)
    detector.model.train(training)
    return scorer
