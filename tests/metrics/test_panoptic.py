"""Panoptic quality: cases that can be checked by hand, and a brute force over sets of pixels."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr_fast.metrics import PanopticQuality
from detr_fast.postprocess import postprocess_panoptic
from detr_fast.structures import MaskPredictions
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

THINGS, STUFF = {1, 2}, {7}


def segment(number: int, label: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "label": label, **more}


def strip(*parts: tuple[int, int]) -> Tensor:
    """One row of pixels from (id, length)."""
    return torch.cat([torch.full((1, length), number) for number, length in parts], dim=1)


VOID = strip((0, 3))


def quality_of(*update: Any) -> PanopticQuality:
    quality = PanopticQuality(THINGS, STUFF)
    quality.update(*update)
    return quality


def counts(quality: PanopticQuality, label: int) -> tuple[float, int, int, int]:
    counted = quality.classes[label]
    return counted.iou, counted.tp, counted.fp, counted.fn


def test_perfect() -> None:
    ids, segments = strip((3, 4), (8, 5), (5, 2)), [segment(3, 1), segment(8, 1), segment(5, 7)]
    quality = quality_of(ids, segments, ids + 100 * (ids > 0), [{**s, "id": s["id"] + 100} for s in segments])
    assert set(quality.result().values()) == {1.0}
    assert quality.per_class() == {1: {"PQ": 1, "SQ": 1, "RQ": 1}, 7: {"PQ": 1, "SQ": 1, "RQ": 1}}


def test_shifted() -> None:
    """Ten pixels that share eight: IoU 8/12; ten that share six: 6/14, no match."""
    truth = strip((1, 10), (2, 10))
    found = quality_of(
        strip((0, 2), (1, 10), (2, 8)), [segment(1, 1), segment(2, 2)], truth, [segment(1, 1), segment(2, 2)]
    )
    assert counts(found, 1) == (pytest.approx(8 / 12), 1, 0, 0)
    assert counts(found, 2) == (pytest.approx(8 / 10), 1, 0, 0)
    assert found.result()["PQ_st"] == -1
    assert found.result()["PQ"] == found.result()["PQ_th"] == pytest.approx((8 / 12 + 8 / 10) / 2)
    missed = quality_of(
        strip((0, 4), (1, 10), (0, 6)),
        [segment(1, 1)],
        strip((1, 10), (2, 10)),
        [segment(1, 1), segment(2, 2)],
    )
    assert counts(missed, 1) == (0, 0, 1, 1)
    assert counts(missed, 2) == (0, 0, 0, 1)
    assert missed.result()["PQ"] == 0


def test_quality_is_product() -> None:
    """One match of IoU 0.8, one missed, one in vain: SQ 0.8, RQ 1 / 2."""
    truth = strip((1, 10), (2, 5), (3, 10))
    found = strip((9, 8), (0, 7), (5, 10))
    quality = quality_of(
        found, [segment(9, 1), segment(5, 2)], truth, [segment(1, 1), segment(2, 1), segment(3, 1)]
    )
    quality.update(strip((0, 10)), [], strip((0, 10)), [])
    assert counts(quality, 1) == (pytest.approx(0.8), 1, 0, 2)
    assert counts(quality, 2) == (0, 0, 1, 0)
    assert quality.per_class()[1] == pytest.approx({"PQ": 0.4, "SQ": 0.8, "RQ": 0.5})
    assert quality.result()["SQ"] == pytest.approx(0.4), "a mean over classes"


def test_exactly_half_is_no_match() -> None:
    """Of the union of eight, four are shared."""
    quality = quality_of(strip((1, 4), (0, 4)), [segment(1, 1)], strip((1, 8)), [segment(1, 1)])
    assert counts(quality, 1) == (0, 0, 1, 1)
    quality = quality_of(strip((1, 5), (0, 4)), [segment(1, 1)], strip((1, 9)), [segment(1, 1)])
    assert counts(quality, 1) == (pytest.approx(5 / 9), 1, 0, 0)


def test_void_is_no_part_of_the_union() -> None:
    """Six of ten predicted pixels are void: they neither spoil a match nor count as a false positive."""
    quality = quality_of(strip((1, 10)), [segment(1, 1)], strip((0, 6), (4, 4)), [segment(4, 1)])
    assert counts(quality, 1) == (1, 1, 0, 0)
    other = quality_of(strip((1, 10)), [segment(1, 1)], strip((0, 6), (4, 4)), [segment(4, 2)])
    assert counts(other, 1) == (0, 0, 0, 0)
    assert counts(other, 2) == (0, 0, 0, 1)
    half = quality_of(strip((1, 10)), [segment(1, 1)], strip((0, 5), (4, 5)), [segment(4, 2)])
    assert counts(half, 1) == (0, 0, 1, 0), "exactly half void still counts"


def test_crowds() -> None:
    """Predictions in a crowd of their class are forgiven, of another class not; nobody misses a crowd."""
    crowd = [segment(4, 1, iscrowd=1)]
    truth = strip((4, 8), (0, 1), (6, 3))
    inside = quality_of(
        strip((1, 4), (2, 4), (3, 4)), [segment(i, 1) for i in (1, 2, 3)], truth, [*crowd, segment(6, 1)]
    )
    assert counts(inside, 1) == (1, 1, 0, 0)
    whole = quality_of(strip((1, 12)), [segment(1, 1)], truth, [*crowd, segment(6, 1)])
    assert counts(whole, 1) == (0, 0, 0, 1), "IoU with a crowd is no match"
    other = quality_of(strip((1, 8), (0, 4)), [segment(1, 2)], truth, [*crowd, segment(6, 1)])
    assert counts(other, 2) == (0, 0, 1, 0)
    mixed = quality_of(
        strip((1, 10)), [segment(1, 1)], strip((4, 3), (0, 3), (6, 4)), [*crowd, segment(6, 2)]
    )
    assert counts(mixed, 1) == (0, 0, 0, 0), "void and crowd together are more than half"


def test_unknown_labels_of_predictions_are_left_out() -> None:
    truth = [segment(1, 1)]
    quality = quality_of(strip((1, 5), (2, 5)), [segment(1, 1), segment(2, 99)], strip((1, 10)), truth)
    assert counts(quality, 1) == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="true_segments: segment 1 has the unknown label 99"):
        quality.update(strip((0, 10)), [], strip((1, 10)), [segment(1, 99)])


def test_true_segment_without_pixels_is_missed() -> None:
    quality = quality_of(strip((0, 5)), [], strip((0, 5)), [segment(3, 7)])
    assert counts(quality, 7) == (0, 0, 0, 1)


def test_nothing_at_all() -> None:
    assert set(PanopticQuality(THINGS, STUFF).result().values()) == {-1.0}
    assert quality_of(strip((0, 5)), [], strip((0, 5)), []).per_class() == {}


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ((strip((4, 3)), [], VOID, []), r"predicted_ids: the ids \[4\] are not among predicted_segments"),
        ((VOID, [], strip((4, 2), (5, 1)), [segment(5, 1)]), r"true_ids: the ids \[4\] are not among"),
        ((VOID, [segment(2, 1)], VOID, []), r"predicted_segments: the ids \[2\] have no pixels"),
        ((VOID, [], strip((0, 4)), []), r"expected \[h, w\] of true_ids, \(1, 4\); got \(1, 3\)"),
        ((strip((2, 3)), [segment(2, 1), segment(2, 2)], VOID, []), r"expected distinct ids .* \[2, 2\]"),
        ((VOID, [segment(0, 1)], VOID, []), "expected distinct ids other than 0"),
        ((VOID.float(), [], VOID, []), r"predicted_ids: expected \[h, w\] integers; got \[1, 3\]"),
    ],
)
def test_bad_input_counts_nothing(update: Any, message: str) -> None:
    quality = PanopticQuality(THINGS, STUFF)
    with pytest.raises(ValueError, match=message):
        quality.update(*update)
    assert quality.per_class() == {}


def test_labels_of_both_kinds() -> None:
    with pytest.raises(ValueError, match=r"expected no label in both; got \[2\]"):
        PanopticQuality({1, 2}, {2, 3})
    with pytest.raises(ValueError, match="other: expected the same things and stuff"):
        PanopticQuality({1}, {2}).merge(PanopticQuality({1}, {3}))


def random_side(rng: torch.Generator, crowds: bool) -> tuple[Tensor, list[dict[str, Any]]]:
    """Blocks of random segments with void between them."""
    numbers = torch.randint(0, 6, (4, 5), generator=rng)
    ids = numbers.repeat_interleave(3, 0).repeat_interleave(3, 1)
    flip = torch.rand(ids.shape, generator=rng) < 0.15
    ids = torch.where(flip, torch.randint(0, 6, ids.shape, generator=rng), ids)
    labels = torch.tensor([1, 1, 2, 7, 2])[torch.randperm(5, generator=rng)].tolist()
    segments = [segment(i, labels[i - 1], iscrowd=int(crowds and i == 5)) for i in ids.unique().tolist() if i]
    return ids, segments


def brute_force(images: list[Any]) -> dict[int, list[float]]:
    """IoU sum, TP, FP, FN of each label, from sets of pixels."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    for found, predicted, truth, true in images:
        pixels = {s["id"]: set(np.flatnonzero(found == s["id"])) for s in predicted}
        true_pixels = {s["id"]: set(np.flatnonzero(truth == s["id"])) for s in true}
        void = set(np.flatnonzero(truth == 0))
        hits = set()
        for p in predicted:
            mine, matches, forgiven = pixels[p["id"]], 0, pixels[p["id"]] & void
            for t in true:
                theirs = true_pixels[t["id"]]
                if t["label"] != p["label"]:
                    continue
                if t["iscrowd"]:
                    forgiven = forgiven | (mine & theirs)
                elif len(mine & theirs) / len((mine | theirs) - (void - theirs)) > 0.5:
                    matches += 1
                    hits.add(t["id"])
                    sums[p["label"]][0] += len(mine & theirs) / len((mine | theirs) - void)
            sums[p["label"]][1] += matches
            sums[p["label"]][2] += not matches and len(forgiven) / len(mine) <= 0.5
        for t in true:
            sums[t["label"]][3] += not t["iscrowd"] and t["id"] not in hits
    return {label: values for label, values in sums.items() if any(values[1:])}


def test_brute_force_and_merging(rng: torch.Generator) -> None:
    images = []
    for _ in range(30):
        truth, true = random_side(rng, crowds=True)
        found, predicted = random_side(rng, crowds=False)
        if torch.rand((), generator=rng) < 0.7:  # something alike
            keep = torch.rand(truth.shape, generator=rng) < 0.85
            found = torch.where(keep, truth, 0)
            predicted = [
                {k: v for k, v in s.items() if k != "iscrowd"} for s in true if (found == s["id"]).any()
            ]
        images.append((found, predicted, truth, true))
    parts = [PanopticQuality(THINGS, STUFF) for _ in range(3)]
    for i, image in enumerate(images):
        parts[i % 3].update(*image)
    whole, *others = (pickle.loads(pickle.dumps(part)) for part in parts)
    for other in others:
        whole.merge(other)
    expected = brute_force([(f.numpy(), p, t.numpy(), s) for f, p, t, s in images])
    found_counts = {label: list(counts(whole, label)) for label in whole.per_class()}
    assert found_counts.keys() == expected.keys()
    for label, values in expected.items():
        assert found_counts[label] == pytest.approx(values)
    per_class = {label: iou / (tp + 0.5 * fp + 0.5 * fn) for label, (iou, tp, fp, fn) in expected.items()}
    result = whole.result()
    assert result["PQ"] == pytest.approx(sum(per_class.values()) / len(per_class))
    assert result["PQ_st"] == pytest.approx(per_class[7])


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
def test_real_annotations() -> None:
    """COCO's own segments score 1; without one class that class alone is missed; crowds do not matter."""
    assert COCO_SAMPLE is not None
    things, stuff, images = read_panoptic(COCO_SAMPLE / "annotations" / "panoptic_val2017.json")
    perfect, without = PanopticQuality(things, stuff), PanopticQuality(things, stuff)
    dropped = min(s["label"] for _, segments in images for s in segments if not s["iscrowd"])
    for ids, segments in images:
        own = [s for s in segments if not s["iscrowd"]]
        perfect.update(np.where(np.isin(ids, [s["id"] for s in own]), ids, 0), own, ids, segments)
        others = [s for s in own if s["label"] != dropped]
        without.update(np.where(np.isin(ids, [s["id"] for s in others]), ids, 0), others, ids, segments)
    assert set(perfect.result().values()) == {1.0}
    assert without.per_class()[dropped]["PQ"] == 0
    classes = len(without.per_class())
    assert without.result()["PQ"] == pytest.approx((classes - 1) / classes)


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
def test_perfect_queries_give_perfect_segments() -> None:
    """One sure query for each of COCO's segments, through the inference of Mask2Former and of MaskFormer."""
    assert COCO_SAMPLE is not None
    things, stuff, images = read_panoptic(COCO_SAMPLE / "annotations" / "panoptic_val2017.json")
    classes = max(things | stuff) + 1
    for pixel_threshold in (0.5, None):
        quality = PanopticQuality(things, stuff)
        for ids, segments in images[:5]:
            own = [s for s in segments if not s["iscrowd"]]
            logits = torch.zeros(1, 1, len(own), classes + 1)
            for query, target in enumerate(own):
                logits[0, 0, query, target["label"]] = 20
            masks = torch.stack([torch.from_numpy(np.where(ids == s["id"], 9.0, -9.0)) for s in own])
            predictions = MaskPredictions(logits, masks[None, None].float())
            (found,) = postprocess_panoptic(
                predictions,
                ids.shape,
                [ids.shape],
                [ids.shape],
                things=things,
                pixel_threshold=pixel_threshold,
            )
            quality.update(found["segmentation"], found["segments"], ids, segments)
        if pixel_threshold is not None:
            assert set(quality.result().values()) == {1.0}
        assert quality.result()["RQ"] > 0.9


def read_panoptic(file: Path) -> tuple[set[int], set[int], list[tuple[Any, list[dict[str, Any]]]]]:
    content = json.loads(file.read_text())
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    images = []
    for annotation in content["annotations"]:
        with Image.open(file.with_suffix("") / annotation["file_name"]) as png:
            ids = np.asarray(png).astype(np.int64) @ np.array([1, 256, 256**2])
        segments = [{**s, "label": s["category_id"]} for s in annotation["segments_info"]]
        images.append((ids, segments))
    return things, {c["id"] for c in content["categories"]} - things, images
