"""Inference of mask classifiers: what the official cases leave open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast.postprocess import (
    postprocess_instance,
    postprocess_panoptic,
    postprocess_semantic,
    postprocess_semantic_labels,
)
from detr_fast.structures import MaskPredictions

THING, OTHER_THING, STUFF, NO_OBJECT = range(4)
THINGS = (THING, OTHER_THING)


def predictions_of(queries: list[tuple[int, float, Tensor]]) -> MaskPredictions:
    """One image from (class, logit, mask); masks are bool [h, w]."""
    logits = torch.zeros(1, 1, len(queries), 4)
    for q, (label, logit, _) in enumerate(queries):
        logits[0, 0, q, label] = logit
    masks = torch.stack([torch.where(mask, 9.0, -9.0) for _, _, mask in queries])
    return MaskPredictions(logits, masks[None, None])


def columns(start: int, stop: int) -> Tensor:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, start:stop] = True
    return mask


def panoptic(queries: list[tuple[int, float, Tensor]], **options: Any) -> dict[str, Any]:
    size = (4, 6)
    return postprocess_panoptic(predictions_of(queries), size, [size], [size], things=THINGS, **options)[0]


def test_things_stay_apart_and_stuff_merges() -> None:
    queries = [
        (THING, 9.0, columns(0, 1)),
        (THING, 9.0, columns(1, 3)),
        (STUFF, 8.0, columns(3, 4)),
        (NO_OBJECT, 9.0, columns(0, 6)),
        (STUFF, 9.0, columns(5, 6)),
    ]
    found = panoptic(queries)
    assert found["segmentation"].dtype == torch.int32
    assert found["segmentation"].tolist() == [[1, 2, 2, 3, 0, 3]] * 4
    sure = [float(torch.tensor([logit, 0, 0, 0]).softmax(0)[0]) for logit in (9.0, 8.0)]
    expected = [
        (1, THING, True, sure[0], 4, 0),
        (2, THING, True, sure[0], 8, 1),
        (3, STUFF, False, sure[0], 8, 4),
    ]
    names = ("id", "label", "isthing", "score", "area", "query")
    assert found["segments"] == [dict(zip(names, segment, strict=True)) for segment in expected]


def test_without_a_pixel_threshold_every_pixel_has_a_winner() -> None:
    queries = [(THING, 9.0, columns(0, 3)), (STUFF, 9.0, columns(3, 4))]
    assert panoptic(queries)["segmentation"].tolist() == [[1, 1, 1, 2, 0, 0]] * 4
    won = panoptic(queries, pixel_threshold=None)
    assert won["segmentation"].tolist() == [[1, 1, 1, 2, 1, 1]] * 4
    assert [segment["area"] for segment in won["segments"]] == [20, 4]


def test_no_segment() -> None:
    for queries in (
        [(NO_OBJECT, 9.0, columns(0, 6))],
        [(THING, 0.5, columns(0, 6))],  # not sure enough
        [(THING, 9.0, columns(0, 0))],  # nowhere
    ):
        found = panoptic(queries)
        assert found["segments"] == []
        assert not found["segmentation"].any()


def test_ties_go_to_the_first_query() -> None:
    same = [(THING, 9.0, columns(1, 4)), (THING, 9.0, columns(1, 4))]
    found = panoptic(same)
    assert [segment["area"] for segment in found["segments"]] == [12]
    found = panoptic([(THING, 9.0, columns(1, 4)), (OTHER_THING, 9.0, columns(1, 4))])
    assert [segment["label"] for segment in found["segments"]] == [THING]
    size = (4, 6)
    (instances,) = postprocess_instance(predictions_of(same), size, [size], [size], top=3)
    assert instances["labels"].tolist() == [THING, THING, THING + 1]


def test_mostly_hidden_queries_are_dropped() -> None:
    queries = [(THING, 9.0, columns(0, 3)), (OTHER_THING, 8.0, columns(0, 4))]
    assert panoptic(queries)["segmentation"].tolist() == [[1, 1, 1, 0, 0, 0]] * 4
    assert panoptic(queries, overlap=0.2)["segmentation"].tolist() == [[1, 1, 1, 2, 0, 0]] * 4


def test_instances() -> None:
    queries = [(THING, 5.0, columns(1, 4)), (STUFF, 6.0, columns(0, 6)), (NO_OBJECT, 9.0, columns(2, 3))]
    size = (4, 6)
    predictions = predictions_of(queries)
    (every,) = postprocess_instance(predictions, size, [size], [size])
    assert len(every["scores"]) == 3 * 3
    assert every["labels"].tolist()[:2] == [STUFF, THING]
    assert every["queries"].tolist()[:2] == [1, 0]
    assert every["masks"].dtype == torch.bool
    assert torch.equal(every["masks"][1], columns(1, 4))
    assert every["boxes"][:2].tolist() == [[0, 0, 6, 4], [1, 0, 4, 4]]
    (kept,) = postprocess_instance(predictions, size, [size], [size], top=2, things=THINGS)
    assert kept["labels"].tolist() == [THING]
    (none,) = postprocess_instance(predictions, size, [size], [size], top=1, things=THINGS)
    assert none["masks"].shape == (0, *size)
    assert none["boxes"].shape == (0, 4)
    nowhere = predictions_of([(THING, 5.0, columns(0, 0))])
    (empty,) = postprocess_instance(nowhere, size, [size], [size], top=1)
    assert empty["scores"].tolist() == [0]
    assert empty["boxes"].tolist() == [[0, 0, 0, 0]]


def random_case(rng: torch.Generator) -> tuple[MaskPredictions, Any, Any, Any]:
    logits = 4 * torch.randn(2, 3, 11, 6, generator=rng)
    masks = 3 * torch.randn(2, 3, 11, 8, 10, generator=rng)
    return (
        MaskPredictions(logits, masks),
        (32, 40),
        [(32, 40), (20, 31), (9, 33)],
        [(25, 50), (20, 31), (1, 2)],
    )


def resized(masks: Tensor, padded: Any, crop: Any, size: Any) -> Tensor:
    """All queries of one image at once, in float64."""
    maps = F.interpolate(masks.double()[None], size=padded, mode="bilinear")[..., : crop[0], : crop[1]]
    return F.interpolate(maps, size=size, mode="bilinear")[0]


@pytest.mark.parametrize("pixel_threshold", [0.5, None])
def test_panoptic_against_brute_force(rng: torch.Generator, pixel_threshold: float | None) -> None:
    case = random_case(rng)
    predictions, padded, crops, sizes = case
    found = postprocess_panoptic(
        *case, things=range(3), mask_threshold=0.6, overlap=0.3, pixel_threshold=pixel_threshold
    )
    for b, size in enumerate(sizes):
        probability = resized(predictions.masks[-1, b], padded, crops[b], size).sigmoid()
        scores, labels = predictions.logits[-1, b].softmax(-1).max(-1)
        weighted = torch.where(((labels < 5) & (scores > 0.6))[:, None, None], scores[:, None, None], -1.0)
        winner = (weighted * probability).argmax(0)
        expected, stuff, count = torch.zeros(size, dtype=torch.int32), {}, 0
        for q in range(11):
            won, claimed = winner == q, probability[q] >= 0.5
            kept = won if pixel_threshold is None else won & (probability[q] >= pixel_threshold)
            if labels[q] == 5 or scores[q] <= 0.6 or not kept.any() or not claimed.any():
                continue
            if won.sum() / claimed.sum() < 0.3:
                continue
            label = int(labels[q])
            if label not in stuff:
                count += 1
            number = stuff.get(label, count)
            if label >= 3:
                stuff[label] = number
            expected[kept] = number
        different = found[b]["segmentation"] != expected
        assert different.float().mean() < 0.01, "beyond pixels that float32 decides otherwise"


def test_images_do_not_touch_each_other(rng: torch.Generator) -> None:
    predictions, padded, crops, sizes = random_case(rng)
    together = postprocess_instance(predictions, padded, crops, sizes, top=7)
    maps = postprocess_semantic(predictions, padded, crops, sizes)
    for b in range(3):
        alone = MaskPredictions(predictions.logits[:, b : b + 1], predictions.masks[:, b : b + 1])
        (instances,) = postprocess_instance(
            alone.as_dict(), padded, crops[b : b + 1], sizes[b : b + 1], top=7
        )
        for key, values in instances.items():
            torch.testing.assert_close(together[b][key], values)
        (scores,) = postprocess_semantic(alone, padded, crops[b : b + 1], sizes[b : b + 1])
        assert scores.shape == (5, *sizes[b])
        torch.testing.assert_close(maps[b], scores)


@pytest.mark.parametrize("threshold", [0.1, 0.4, 1.1])
def test_instances_of_a_lowest_score(rng: torch.Generator, threshold: float) -> None:
    """The same, bit for bit, as leaving out the others afterwards."""
    predictions, padded, crops, _ = random_case(rng)
    predictions.masks[-1, 0, ::2] = -1.0  # empty masks of score 0
    arguments = (predictions, padded, crops, [(25, 50), (300, 400), (1, 2)])
    for options in ({}, {"things": (0, 3)}, {"top": 5}):
        every = postprocess_instance(*arguments, **options)
        found = postprocess_instance(*arguments, **options, score_threshold=threshold)
        for expected, result in zip(every, found, strict=True):
            kept = expected["scores"] >= threshold
            assert result.keys() == expected.keys()
            for name, values in expected.items():
                assert torch.equal(result[name], values[kept]), name


@pytest.mark.parametrize("resize", ["after", "before"])
def test_semantic_labels_are_the_best_scores(rng: torch.Generator, resize: Any) -> None:
    predictions, padded, crops, _ = random_case(rng)
    sizes = [(25, 50), (700, 1300), (1, 2)]  # the second in several bands of rows
    scores = postprocess_semantic(predictions, padded, crops, sizes, resize=resize)
    labels = postprocess_semantic_labels(predictions, padded, crops, sizes, resize=resize)
    for score, label, size in zip(scores, labels, sizes, strict=True):
        assert label.shape == size
        assert label.dtype == torch.int64
        # rounding decides where two classes are equally good
        found, best = score.gather(0, label[None])[0], score.amax(0)
        torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)
        assert (label == score.argmax(0)).float().mean() > 0.999


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


@pytest.mark.parametrize("found", [0, 3])
def test_memory_grows_with_what_is_found(found: int, rng: torch.Generator) -> None:
    """100 queries, of which few are sure, in an image of a million pixels."""
    logits = torch.randn(1, 1, 100, 6, generator=rng)
    logits[..., -1] += 9.0
    logits[0, 0, :found, 1] += 30.0
    masks = torch.full((1, 1, 100, 25, 25), -6.0)
    masks[..., 5:20, 3:22] = 6.0
    predictions = MaskPredictions(logits, masks)
    size = (1000, 1000)
    arguments = (predictions, (100, 100), [(100, 100)], [size])
    with Largest() as largest:
        (instances,) = postprocess_instance(*arguments, score_threshold=0.5)
    assert len(instances["scores"]) == found
    # one map, or the masks found; the maps of the padded batch
    assert largest.bytes <= (4 * 1000 * 1000 if found else 4 * masks.numel())
    with Largest() as largest:
        (panoptic,) = postprocess_panoptic(*arguments, things=range(5), overlap=0.0)
    assert bool(panoptic["segments"]) == bool(found)
    assert largest.bytes <= (8 if found else 4) * 1000 * 1000
    for resize in ("after", "before"):
        with Largest() as largest:
            postprocess_semantic_labels(*arguments, resize=resize)
        assert largest.bytes <= 4 * 2**22  # a band of rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_stay_as_they_are(rng: torch.Generator, dtype: torch.dtype) -> None:
    """Also where nothing has to be resized."""
    logits, masks = (torch.randn(1, 1, *s, generator=rng).to(dtype) for s in ((3, 4), (3, 4, 6)))
    before = masks.clone()
    args = (MaskPredictions(logits, masks), (4, 6), [(4, 6)], [(4, 6)])
    assert postprocess_semantic(*args)[0].dtype == torch.float32
    assert postprocess_semantic(*args, resize="before")[0].dtype == torch.float32
    postprocess_semantic_labels(*args, resize="before")
    assert postprocess_instance(*args)[0]["scores"].dtype == torch.float32
    postprocess_panoptic(*args, things=(), mask_threshold=0.1)
    assert torch.equal(masks, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 6), [(4, 6), (4, 6)], [(4, 6)]), "image_sizes: expected one .* for each of 1 images"),
        (((4, 6), [(4, 6)], []), "output_sizes: expected one .* for each of 1 images"),
        (((4, 6), [(5, 6)], [(4, 6)]), r"image_sizes: expected at most padded_size = \(4, 6\); got \(5, 6\)"),
        (
            ((4, 6), [(4, 6)], [(0, 6)]),
            r"output_sizes: expected \(height, width\) of at least 1; got \(0, 6\)",
        ),
    ],
)
def test_wrong_sizes(arguments: Any, message: str) -> None:
    predictions = predictions_of([(THING, 9.0, columns(0, 6))])
    for function, options in (
        (postprocess_semantic, {}),
        (postprocess_semantic_labels, {}),
        (postprocess_instance, {}),
        (postprocess_panoptic, {"things": THINGS}),
    ):
        with pytest.raises(ValueError, match=message):
            function(predictions, *arguments, **options)


def test_wrong_options() -> None:
    args = (predictions_of([(THING, 9.0, columns(0, 6))]), (4, 6), [(4, 6)], [(4, 6)])
    with pytest.raises(ValueError, match="top: expected at least 1; got 0"):
        postprocess_instance(*args, top=0)
    with pytest.raises(ValueError, match="resize: expected 'after' or 'before'; got 'never'"):
        postprocess_semantic(*args, resize="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize: expected 'after' or 'before'; got 'never'"):
        postprocess_semantic_labels(*args, resize="never")  # type: ignore[arg-type]


def test_predictions_that_are_not_numbers(rng: torch.Generator) -> None:
    """A diverged model's results are as many as ever, and never an error."""
    predictions, padded, crops, sizes = random_case(rng)
    arguments = (padded, crops, sizes)
    for logits, masks in (
        (torch.full_like(predictions.logits, torch.nan), predictions.masks),
        (predictions.logits, torch.full_like(predictions.masks, torch.nan)),
        (predictions.logits, torch.full_like(predictions.masks, torch.inf)),
    ):
        bad = MaskPredictions(logits, masks)
        for threshold in (0.0, 0.5):
            found = postprocess_instance(bad, *arguments, score_threshold=threshold)
            if not threshold:
                assert all(len(result["scores"]) == 11 * 5 for result in found)
        postprocess_panoptic(bad, *arguments, things=THINGS)
        for resize in ("after", "before"):
            labels = postprocess_semantic_labels(bad, *arguments, resize=resize)
            assert all(label.min() >= 0 and label.max() < 5 for label in labels)
