"""From RGB pictures through a detector to results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from detr_fast.data import image_to_tensor, resized_size
from detr_fast.engine.results import ImageResult, result_of
from detr_fast.families.results import Geometry
from detr_fast.structures import PaddedImages

if TYPE_CHECKING:
    from detr_fast.engine.detector import Detector


def check_threshold(threshold: float | None) -> None:
    """ValueError for what is no score."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score in 0..1; got {threshold}")


def pixels_of(detector: Detector, image: Image.Image) -> Tensor:
    """An RGB image as [3, H, W], resized and normalised for the model."""
    size = resized_size(image.width, image.height, detector.image_size, detector.max_size)
    return image_to_tensor(image.resize(size, Image.Resampling.BILINEAR))


def padded(detector: Detector, pixels: Sequence[Tensor]) -> PaddedImages:
    """A batch on the model's device."""
    return PaddedImages.from_list(pixels, multiple=detector.size_multiple).to(detector.device)


@torch.no_grad()
def find(
    detector: Detector,
    pixels: Sequence[Tensor],
    shown: Sequence[Image.Image],
    threshold: float | None = None,
) -> list[ImageResult]:
    """What the detector finds in a batch.

    Args:
        detector: its model is put into evaluation mode.
        pixels: [3, H, W] of each image, see `pixels_of`.
        shown: the images at the sizes that results are wanted at.
        threshold: lowest score; by default what the task shows.
    """
    check_threshold(threshold)
    if not pixels:
        return []
    detector.model.eval()
    task = detector.task
    threshold = task.threshold if threshold is None else threshold
    images = padded(detector, pixels)
    height, width = images.tensors.shape[2:]
    geometry = Geometry(
        (height, width),
        [(x.shape[1], x.shape[2]) for x in pixels],
        [(image.height, image.width) for image in shown],
    )
    results = []
    for image, result in zip(shown, detector.results(images, geometry, threshold), strict=True):
        chosen = task.select(result, detector.categories, threshold or 0.0)
        if "boxes" in chosen:
            limits = torch.tensor([image.width, image.height] * 2, device=chosen["boxes"].device)
            chosen["boxes"] = chosen["boxes"].clamp(min=0).minimum(limits)
        results.append(result_of(task.name, image, detector.categories, chosen))
    return results
