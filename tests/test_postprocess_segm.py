"""From the masks of a DETR for segmentation to instances and panoptic segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr_fast.postprocess import postprocess_detection, postprocess_detr_panoptic, postprocess_segm
from detr_fast.postprocess.detr_segm import _nearest
from detr_fast.structures import Predictions

CLASSES = 4  # 0 and 1 are things, 2 and 3 stuff; 4 is no object
THINGS = (0, 1)


def predictions(labels: list[int], masks: Tensor, certainty: float = 10.0) -> Predictions:
    """One image whose queries are sure of `labels`; masks [Q, h, w] logits."""
    logits = torch.zeros(1, 1, len(labels), CLASSES + 1)
    for query, label in enumerate(labels):
        logits[0, 0, query, label] = certainty
    return Predictions(logits, torch.full((1, 1, len(labels), 4), 0.5), masks=masks[None, None])


def blocks(height: int, width: int, *areas: tuple[slice, slice], weight: float = 1.0) -> Tensor:
    """A mask for each area: logit `weight` * 2 inside and -2 outside."""
    masks = torch.full((len(areas), height, width), -2.0)
    for n, (rows, columns) in enumerate(areas):
        masks[n, rows, columns] = 2.0 * weight
    return masks


def test_instances_are_cropped_and_resized() -> None:
    """The padded right half plays no part; the result is the left half at twice its size."""
    masks = torch.full((2, 4, 8), -3.0)
    masks[0, :2, :2] = 3
    masks[0, :, 4:] = 3  # padding
    found = predictions([1, 4], masks)
    (result,) = postprocess_segm(found, (4, 8), [(4, 4)], [(8, 8)])
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(result["masks"][0], expected)
    assert not result["masks"][1].any()
    (detections,) = postprocess_detection(found, torch.tensor([[8, 8]]))
    for key, value in detections.items():
        assert torch.equal(result[key], value)
    (from_dict,) = postprocess_segm(found.as_dict(), (4, 8), [(4, 4)], [(8, 8)])
    assert torch.equal(from_dict["masks"], result["masks"])


def test_instance_threshold(rng: torch.Generator) -> None:
    """Any threshold, any count of queries, against the plain formula."""
    masks, sizes = torch.randn(2, 11, 5, 6, generator=rng), [(17, 22), (20, 13)]
    outputs = [(31, 40), (9, 13)]
    found = Predictions(torch.zeros(1, 2, 11, 5), torch.rand(1, 2, 11, 4, generator=rng), masks=masks[None])
    results = postprocess_segm(found, (20, 22), sizes, outputs, threshold=0.3)
    full = torch.nn.functional.interpolate(masks, size=(20, 22), mode="bilinear").sigmoid() > 0.3
    for result, mask, (h, w), size in zip(results, full, sizes, outputs, strict=True):
        expected = torch.nn.functional.interpolate(mask[None, :, :h, :w].float(), size=size, mode="nearest")
        assert torch.equal(result["masks"], expected[0].bool())
    bf16 = postprocess_segm(
        Predictions(found.logits.bfloat16(), found.boxes, masks=masks.bfloat16()[None]),
        (20, 22),
        sizes,
        outputs,
    )
    assert bf16[0]["masks"].dtype == torch.bool


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.1])
def test_instances_of_a_lowest_score(threshold: float, rng: torch.Generator) -> None:
    logits, masks = 3 * torch.randn(1, 2, 11, 5, generator=rng), torch.randn(1, 2, 11, 5, 6, generator=rng)
    predictions = Predictions(logits, torch.rand(1, 2, 11, 4, generator=rng), masks=masks)
    arguments = (predictions, (20, 22), [(17, 22), (20, 13)], [(31, 40), (300, 400)])
    found = postprocess_segm(*arguments, score_threshold=threshold)
    for expected, result in zip(postprocess_segm(*arguments), found, strict=True):
        kept = expected["scores"] >= threshold
        for name, values in expected.items():
            assert torch.equal(result[name], values[kept]), name


def test_panoptic_segments() -> None:
    """Two things, one stuff class of two queries, a query of no object and one that is too unsure."""
    left, right = slice(0, 4), slice(4, 8)
    areas = [(left, left), (left, right), (right, left), (right, right), (left, left)]
    found = predictions([0, 0, 2, 2, 4, 1], torch.cat((blocks(8, 8, *areas), torch.full((1, 8, 8), 9.0))))
    found.logits[..., 5, :] = 0
    (result,) = postprocess_detr_panoptic(found, (8, 8), [(8, 8)], [(16, 16)], things=THINGS)
    # the second query of the stuff class is merged into the first, hence empty, hence dropped; and dealt out
    # anew, its pixels go to the first query of those left that are equally unsure there
    segments = [(s["id"], s["label"], s["isthing"], s["query"]) for s in result["segments"]]
    assert segments == [(1, 0, True, 0), (2, 0, True, 1), (3, 2, False, 2)]
    ids = result["segmentation"]
    assert ids.dtype == torch.int32
    assert ids[:8, :8].eq(1).all()
    assert ids[:8, 8:].eq(2).all()
    assert ids[8:, :8].eq(3).all()
    assert [s["area"] for s in result["segments"]] == [int((ids == n).sum()) for n in (1, 2, 3)]
    assert all(s["score"] > 0.99 for s in result["segments"])


@pytest.mark.parametrize(("area", "kept"), [(4, False), (5, True)])
def test_small_segments(area: int, kept: bool) -> None:
    masks = blocks(8, 8, (slice(None), slice(None)), (slice(0, 1), slice(0, area)), weight=1.0)
    masks[1, 0, :area] = 5
    found = predictions([2, 0], masks)
    (result,) = postprocess_detr_panoptic(found, (8, 8), [(8, 8)], [(8, 8)], things=THINGS)
    assert [s["query"] for s in result["segments"]] == ([0, 1] if kept else [0])
    assert int((result["segmentation"] == 1).sum()) == 64 - area * kept


def test_nothing_left() -> None:
    nobody = predictions([4, 4], torch.zeros(2, 4, 4))
    tiny = predictions([0], torch.zeros(1, 4, 4))
    queries = predictions([], torch.zeros(0, 4, 4))
    for found, size in ((nobody, (6, 7)), (tiny, (2, 2)), (queries, (6, 7))):
        (result,) = postprocess_detr_panoptic(found, (4, 4), [(4, 4)], [size], things=THINGS)
        assert result["segments"] == []
        assert result["segmentation"].shape == size
        assert not result["segmentation"].any()
    (result,) = postprocess_segm(queries, (4, 4), [(4, 4)], [(6, 7)])
    assert result["masks"].shape == (0, 6, 7)


def test_padding_is_squeezed_or_cropped() -> None:
    """The official code resizes the padded map to the image; the option leaves the padding out."""
    masks = blocks(4, 8, (slice(None), slice(0, 4)), (slice(None), slice(4, 8)))
    found = predictions([0, 1], masks)
    (official,) = postprocess_detr_panoptic(found, (4, 8), [(4, 4)], [(8, 8)], things=THINGS)
    assert [s["area"] for s in official["segments"]] == [32, 32]
    (cropped,) = postprocess_detr_panoptic(
        found, (4, 8), [(4, 4)], [(8, 8)], things=THINGS, crop_padding=True
    )
    assert [(s["query"], s["area"]) for s in cropped["segments"]] == [(0, 64)]


def test_segments_survive_in_order(rng: torch.Generator) -> None:
    """Areas and ids agree with the map, whatever the masks; both ways agree without padding."""
    labels = torch.randint(0, CLASSES + 1, (20,), generator=rng).tolist()
    found = predictions(labels, torch.randn(20, 7, 9, generator=rng))
    (result,) = postprocess_detr_panoptic(found, (28, 36), [(28, 36)], [(50, 41)], things=THINGS)
    (cropped,) = postprocess_detr_panoptic(
        found, (28, 36), [(28, 36)], [(50, 41)], things=THINGS, crop_padding=True
    )
    assert torch.equal(cropped["segmentation"], result["segmentation"])
    count = len(result["segments"])
    assert [s["id"] for s in result["segments"]] == list(range(1, count + 1))
    areas = result["segmentation"].flatten().bincount(minlength=count + 1).tolist()
    assert areas == [0, *(s["area"] for s in result["segments"])]
    assert all(s["area"] > 4 and labels[s["query"]] == s["label"] for s in result["segments"])


def test_pixels_are_those_of_pil(rng: torch.Generator) -> None:
    sizes = torch.randint(1, 300, (300, 2), generator=rng).tolist()
    for source, size in [*sizes, (3, 1), (800, 427), (1333, 640), (1066, 640)]:
        row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
        expected = np.asarray(row.resize((size, 1), resample=Image.Resampling.NEAREST))[0]
        assert _nearest(source, size).tolist() == expected.tolist(), (source, size)


def test_wrong_input() -> None:
    found = predictions([0], torch.zeros(1, 4, 4))
    without = Predictions(found.logits, found.boxes)
    for process in (postprocess_segm, lambda *a: postprocess_detr_panoptic(*a, things=THINGS)):
        with pytest.raises(ValueError, match=r"predictions: expected masks \[1, B, Q, h, w\], .*got none"):
            process(without, (4, 4), [(4, 4)], [(4, 4)])
        with pytest.raises(ValueError, match=r"image_sizes: expected one .* for each of 1 images"):
            process(found, (4, 4), [], [(4, 4)])
        with pytest.raises(ValueError, match="image_sizes: expected at most padded_size"):
            process(found, (4, 4), [(5, 4)], [(4, 4)])
    with pytest.raises(ValueError, match="threshold: expected 0 < threshold < 1; got 1"):
        postprocess_segm(found, (4, 4), [(4, 4)], [(4, 4)], threshold=1)


def test_panoptic_against_all_maps_at_once(rng: torch.Generator) -> None:
    """The rounds of the contest over an array of all maps: many small segments, stuff of several queries."""
    size = (9, 12)
    for _ in range(5):
        labels = torch.randint(0, CLASSES + 1, (30,), generator=rng).tolist()
        found = predictions(labels, torch.randn(30, 3, 4, generator=rng))
        (result,) = postprocess_detr_panoptic(found, size, [size], [size], things=THINGS)
        queries = [q for q, label in enumerate(labels) if label < CLASSES]
        wins = torch.nn.functional.interpolate(found.masks[0], size=size, mode="bilinear")[0, queries]
        owner = wins.argmax(0)
        for n, query in enumerate(queries):
            if labels[query] not in THINGS:
                owner[owner == n] = [labels[other] for other in queries].index(labels[query])
        alive = list(range(len(queries)))
        while small := {n for n in alive if (owner == n).sum() < 5}:
            alive = [n for n in alive if n not in small]
            wins[list(small)] = -torch.inf
            owner = wins.argmax(0)
        assert [segment["query"] for segment in result["segments"]] == [queries[n] for n in alive]
        for position, n in enumerate(alive, start=1):
            assert torch.equal(result["segmentation"] == position, owner == n)
