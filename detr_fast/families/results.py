"""Decoding predictions into the results of a task, one dict an image.

Detection: `scores`, `labels`, `boxes` (xyxy in pixels). Instance: with `masks` [X, h, w] bool as well.
Panoptic: `segmentation` [h, w] of segment ids and `segments`. Semantic: `labels` [h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from detr_fast.postprocess import postprocess_instance, postprocess_panoptic, postprocess_semantic_labels
from detr_fast.postprocess.detection import Detections, by_image
from detr_fast.structures import MaskPredictions, PaddedImages, Predictions

Size: TypeAlias = tuple[int, int]
Result: TypeAlias = dict[str, Any]
Results: TypeAlias = list[Result]


@dataclass(frozen=True)
class Geometry:
    """The sizes, (height, width) in pixels, that decoding a batch of predictions takes.

    Args:
        padded: of the batch.
        images: of each image in it.
        outputs: of each image's results.
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
class ResultOptions:
    """What else results depend on.

    Args:
        things: labels that come in instances, where there is stuff too.
        threshold: lowest score of an instance, by default 0, or class score of a panoptic segment, by
            default the family's own.
        only_semantic: the model was trained for that alone, which decides when semantic scores are resized.
    """

    things: Collection[int]
    threshold: float | None = None
    only_semantic: bool = True


Decode: TypeAlias = Callable[[Any, Geometry, ResultOptions], Results]
FindDetections: TypeAlias = Callable[[Predictions, Tensor], Detections]


def detection_results(find: FindDetections) -> Decode:
    """The way to decode that `find` is."""

    def decode(predictions: Predictions, geometry: Geometry, options: ResultOptions) -> Results:
        with torch.no_grad():
            return by_image(find(predictions, geometry.target_sizes(predictions.logits.device)))

    return decode


def mask_segments(
    predictions: MaskPredictions,
    geometry: Geometry,
    options: ResultOptions,
    *,
    pixel_threshold: float | None,
) -> Results:
    """Panoptic segments of a mask classifier; `pixel_threshold` as for `postprocess_panoptic`."""
    return postprocess_panoptic(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        things=options.things,
        pixel_threshold=pixel_threshold,
        mask_threshold=0.8 if options.threshold is None else options.threshold,
    )


def mask_instances(predictions: MaskPredictions, geometry: Geometry, options: ResultOptions) -> Results:
    """Instances of a mask classifier."""
    return postprocess_instance(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        things=options.things,
        score_threshold=options.threshold or 0.0,
    )


def mask_labels(predictions: MaskPredictions, geometry: Geometry, options: ResultOptions) -> Results:
    """The class of each pixel by a mask classifier."""
    labels = postprocess_semantic_labels(
        predictions,
        geometry.padded,
        geometry.images,
        geometry.outputs,
        resize="after" if options.only_semantic else "before",
    )
    return [{"labels": of_image} for of_image in labels]
