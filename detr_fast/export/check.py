"""Whether a file says what the detector says: the same numbers, and the same detections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from detr_fast.engine import Detector
from detr_fast.engine.exported import Run, input_names
from detr_fast.export.program import Portable

TOLERANCE = 1e-4  # of the largest value of an output
HALF_TOLERANCE = 1e-2
NUDGE = 1e-6  # of a pixel: no file is held to more than the model changes by that
DECODED = ("scores", "labels", "boxes_xyxy")
Tensors = Mapping[str, Tensor]


@torch.no_grad()
def check(
    detector: Detector,
    run: Run,
    path: Path,
    processing: bool,
    example: tuple[int, int, int, int],
    tolerance: float = TOLERANCE,
) -> float:
    """Runs a file on batches of two shapes, none of them the one that it was recorded with.

    Choices among near equals turn over by rounding alone, so a difference counts only where it is thrice that
    which the model itself shows after a nudge of its input.

    Returns:
        The largest difference, in parts of the largest value of its output.

    Raises:
        ValueError: the file differs.
    """
    network = Portable(detector, processing)
    names = input_names(detector.family, processing)
    _, _, height, width = example
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    # sizes that are no multiple of any stride, and padding
    for batch, h, w in ((1, height + 37, width), (3, height, width + 51)):
        images = torch.rand(batch, 3, h, w, generator=generator) * (255 if processing else 1)
        sizes = torch.tensor([[h, w], [h - 40, w], [h, w - 72]])[:batch]
        given = {"images": images, "sizes": sizes, "output_sizes": sizes * 2}
        inputs = tuple(given[name] for name in names)
        expected, nudged = network(*inputs), network(images * (1 + NUDGE), *inputs[1:])
        arrays = run({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        found = {name: torch.from_numpy(arrays[name]) for name in expected}
        try:
            worst = max(worst, compare(found, expected, nudged, tolerance))
        except ValueError as error:
            raise ValueError(
                f"{path.name}: of images {list(images.shape)} {error}; the file was not kept"
            ) from None
    return worst


def compare(found: Tensors, expected: Tensors, nudged: Tensors, tolerance: float) -> float:
    """The largest relative difference of the raw outputs; ValueError where outputs or detections differ."""
    worst = 0.0
    allowed: dict[str, float] = {}
    for name, wanted in expected.items():
        if name in DECODED:
            continue
        largest = wanted.abs().max().item()
        off = (found[name] - wanted).abs().max().item()
        allowed[name] = max(tolerance * largest, 3 * (nudged[name] - wanted).abs().max().item())
        if not off <= allowed[name]:
            raise ValueError(f"{name} are off by {off:.2g}, where the model's largest is {largest:.2g}")
        worst = max(worst, off / largest if largest else 0.0)
    if "scores" in expected:
        _compare_detections(found, expected, nudged, allowed)
    return worst


def _compare_detections(
    found: Tensors, expected: Tensors, nudged: Tensors, allowed: Mapping[str, float]
) -> None:
    # a score moves by no more than a quarter (sigmoid) or half (softmax) of what logits move by
    scores = allowed["logits"]
    for image in range(len(expected["scores"])):
        one, other, moved = (_of_image(x, image) for x in (found, expected, nudged))
        threshold = other["scores"].max().item() / 2
        boxes = 2 * allowed["boxes"] * other["boxes_xyxy"].abs().max().item()
        tolerance = (threshold, scores, boxes)
        lost = unmatched(other, one, *tolerance) + unmatched(one, other, *tolerance)
        # what the model itself loses to the nudge nobody can keep
        own = unmatched(other, moved, *tolerance) + unmatched(moved, other, *tolerance)
        if lost > 3 * own:
            raise ValueError(
                f"{lost} of the detections above {threshold:.2g} have no match of the same label within "
                f"{scores:.2g} in score and {boxes:.2g} pixels"
            )


def unmatched(ours: Tensors, theirs: Tensors, threshold: float, scores: float, boxes: float) -> int:
    """How many of one image's detections the other side lacks, in whatever order.

    Args:
        ours: `scores` [X], `labels` [X] and `boxes_xyxy` [X, 4].
        theirs: the same of the other side.
        threshold: score that detections must have; those within `scores` of it may be on either side, and so
            may those as good as the last of a list that holds the best alone.
        scores: what the score of a match may be off by.
        boxes: and its box, in pixels.
    """
    best_first = bool((theirs["scores"].diff() <= 0).all())  # and so perhaps cut off
    last = theirs["scores"].min().item() if best_first else 0.0
    sure = ours["scores"] > max(threshold, last) + scores
    if not sure.any():
        return 0
    label, score, box = (ours[name][sure][:, None] for name in ("labels", "scores", "boxes_xyxy"))
    same = (
        (label == theirs["labels"])
        & ((score - theirs["scores"]).abs() <= scores)
        & ((box - theirs["boxes_xyxy"]).abs().amax(-1) <= boxes)
    )
    return int((~same.any(1)).sum())


def _of_image(outputs: Tensors, image: int) -> dict[str, Tensor]:
    return {name: outputs[name][image] for name in DECODED}
