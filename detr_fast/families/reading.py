"""From each family's predictions to the results of a task, one dict an image.

Detection: `scores`, `labels`, `boxes` (xyxy in pixels). Instance: with `masks` [X, h, w] bool as well.
Panoptic: `segmentation` [h, w] of segment ids and `segments`. Semantic: `labels` [h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from detr_fast.postprocess import (
    postprocess_detection,
    postprocess_detr_panoptic,
    postprocess_focal,
    postprocess_instance,
    postprocess_panoptic,
    postprocess_segm,
    postprocess_semantic,
)
from detr_fast.structures import MaskPredictions, PaddedImages, Predictions

Size: TypeAlias = tuple[int, int]
Result: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Geometry:
    """The sizes, (height, width) in pixels, that reading a batch of predictions takes.

    padded: of the batch. images: of each image in it. outputs: of each image's results.
    """

    padded: Size
    images: list[Size]
    outputs: list[Size]

    @classmethod
    def of_batch(cls, images: PaddedImages, targets: Sequence[Mapping[str, Tensor]]) -> Geometry:
        """Of a batch as the loader makes it; results come at the images' original sizes."""
        height, width = images.tensors.shape[2:]
        shown, original = (
            [(int(h), int(w)) for h, w in (target[key].tolist() for target in targets)]
            for key in ("size", "orig_size")
        )
        return cls((height, width), shown, original)

    def target_sizes(self, device: torch.device) -> Tensor:
        """`outputs` as [B, 2]."""
        return torch.tensor(self.outputs, device=device)


@dataclass(frozen=True)
class Reading:
    """What else decides about results.

    things: labels that come in instances, where there is stuff too.
    threshold: lowest class score of a panoptic segment; None is the family's own.
    only_semantic: the model was trained for that alone, which decides when semantic scores are resized.
    """

    things: Collection[int]
    threshold: float | None = None
    only_semantic: bool = True


Read: TypeAlias = Callable[[Any, Geometry, Reading], list[Result]]


def detr_boxes(predictions: Predictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_detection(predictions, geometry.target_sizes(predictions.logits.device))


def focal_boxes(predictions: Predictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_focal(predictions, geometry.target_sizes(predictions.logits.device))


def detr_instances(predictions: Predictions, geometry: Geometry, reading: Reading) -> list[Result]:
    results = postprocess_segm(predictions, geometry.padded, geometry.images, geometry.outputs)
    return [_things_alone(result, reading.things) for result in results]


def detr_segments(predictions: Predictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_detr_panoptic(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        things=reading.things,
        crop_padding=True,
        threshold=0.85 if reading.threshold is None else reading.threshold,
    )


def mask_instances(predictions: MaskPredictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return postprocess_instance(
        predictions, geometry.padded, geometry.images, geometry.outputs, things=reading.things
    )


def mask_labels(predictions: MaskPredictions, geometry: Geometry, reading: Reading) -> list[Result]:
    scores = postprocess_semantic(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        resize="after" if reading.only_semantic else "before",
    )
    return [{"labels": classes.argmax(0)} for classes in scores]


def mask2former_segments(predictions: MaskPredictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return _mask_segments(predictions, geometry, reading, pixel_threshold=0.5)


def maskformer_segments(predictions: MaskPredictions, geometry: Geometry, reading: Reading) -> list[Result]:
    return _mask_segments(predictions, geometry, reading, pixel_threshold=None)


def _mask_segments(
    predictions: MaskPredictions, geometry: Geometry, reading: Reading, pixel_threshold: float | None
) -> list[Result]:
    return postprocess_panoptic(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        things=reading.things,
        pixel_threshold=pixel_threshold,
        mask_threshold=0.8 if reading.threshold is None else reading.threshold,
    )


def _things_alone(result: Result, things: Collection[int]) -> Result:
    kept = torch.isin(result["labels"], result["labels"].new_tensor(sorted(things)))
    return {name: values[kept] for name, values in result.items()}
