"""Masks of COCO instances: drawn as pycocotools draws them, and what is said about those that are wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detr_fast.data import CocoDetection
from detr_fast.data.packed_masks import PackedMasks
from detr_fast.tasks import build_dataset
from tests.data.make import annotation, image, write_dataset
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]
SIZE = (40, 60)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """A mask in the compressed form, as JSON holds it."""
    encoding = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoding["size"], "counts": encoding["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    pixels = mask.flatten(order="F").astype(int)
    changes = np.flatnonzero(np.diff(np.append(0, pixels))).tolist()
    bounds = [0, *changes, len(pixels)]
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def with_segmentations(tmp_path: Path, *segmentations: Any, **options: Any) -> CocoDetection:
    rows = [annotation(i, 1, [0, 0, 30, 30], 3, segmentation=s) for i, s in enumerate(segmentations, 1)]
    write_dataset(tmp_path, [image(1, SIZE[1], SIZE[0]), image(2)], rows)
    return CocoDetection(
        tmp_path / "train2017",
        tmp_path / "annotations" / "instances_train2017.json",
        masks=True,
        **options,
    )


def test_every_form_by_hand(tmp_path: Path) -> None:
    whole, hole = rectangle(10, 10, 20, 20), rectangle(0, 0, 60, 40) & ~rectangle(5, 5, 8, 9)
    two_parts = [[0, 0, 5, 0, 5, 5, 0, 5], [50, 30, 60, 30, 60, 40, 50, 40]]
    beyond = [[-10, -10, 5, -10, 5, 5, -10, 5]]
    data = with_segmentations(
        tmp_path, [SQUARE], encoded(hole), uncompressed(whole), two_parts, beyond, uncompressed(hole)
    )
    target = data[0][1]
    expected = [
        whole,
        hole,
        whole,
        rectangle(0, 0, 5, 5) | rectangle(50, 30, 60, 40),
        rectangle(0, 0, 5, 5),
        hole,
    ]
    assert target["masks"].dtype == torch.bool
    assert target["masks"].is_contiguous()
    np.testing.assert_array_equal(target["masks"].numpy(), np.stack(expected))
    assert data[1][1]["masks"].shape == (0, 40, 60), "an image without objects"
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[0][1]["masks"], target["masks"])


def test_masks_stay_with_their_objects(tmp_path: Path) -> None:
    """Annotations out of the order of the images, with some left out in between."""
    parts = [rectangle(x, x, x + 4, x + 4) for x in range(6)]
    rows = [
        annotation(1, 9, [0, 0, 4, 4], segmentation=encoded(parts[0])),
        annotation(2, 4, [1, 1, 4, 4], segmentation=encoded(parts[1])),
        annotation(3, 9, [2, 2, 0, 4], segmentation=encoded(parts[2])),  # no area
        annotation(4, 9, [3, 3, 4, 4], iscrowd=1, segmentation=encoded(parts[3])),
        annotation(5, 4, [4, 4, 4, 4], segmentation=[]),
        annotation(6, 9, [5, 5, 4, 4], segmentation=encoded(parts[5])),
    ]
    write_dataset(tmp_path, [image(9), image(4)], rows)
    data = build_dataset(tmp_path, "train", "instance", train=False)
    data.transforms = None
    for i, wanted in enumerate(([1], [0, 5])):
        target = data[i][1]
        assert target["boxes"][:, 0].tolist() == wanted
        np.testing.assert_array_equal(target["masks"].numpy(), np.stack([parts[k] for k in wanted]))


def test_useless_masks_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing = np.zeros(SIZE, bool)
    useless = [None, [], [[1, 2, 3, 4]], [[]], encoded(nothing), uncompressed(nothing)]
    with caplog.at_level(logging.WARNING):
        data = with_segmentations(tmp_path, *useless, [SQUARE, [1, 2, 3, 4]])
    np.testing.assert_array_equal(data[0][1]["masks"].numpy(), rectangle(10, 10, 20, 20)[None])
    assert "left out 6 objects without a usable mask" in caplog.text
    assert len(caplog.records) == 1


def test_masks_that_cover_no_pixel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside, sliver = [[70, 50, 80, 50, 80, 60]], [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]
    data = with_segmentations(tmp_path, outside, [SQUARE], sliver)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            target = data[0][1]
            assert {key: len(target[key]) for key in ("boxes", "labels", "area", "iscrowd", "masks")} == {
                "boxes": 1,
                "labels": 1,
                "area": 1,
                "iscrowd": 1,
                "masks": 1,
            }
    assert [
        record.message.count("image 1 has an object whose mask covers no pixel") for record in caplog.records
    ] == [1]


def test_detection_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2017\.json: none of the 2 objects has a mask: is it for detection"
    ):
        with_segmentations(tmp_path, None, [])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], r"segmentation\[0\]: expected a polygon"),
        ([SQUARE, [1, 2, 3, "x", 5, 6]], r"segmentation\[1\]: expected a polygon .* got \[1, 2, 3, 'x'"),
        ([[1, 2, 3, float("nan"), 5, 6]], "expected a polygon"),
        ([[1, 2, 3, 1e30, 5, 6]], "expected a polygon .* within 100000 pixels"),
        ([[[1, 2], [3, 4], [5, 6]]], "expected a polygon"),
        ([1, 2, 3, 4, 5, 6], "expected a polygon .* got 1$"),
        ("polygon", "expected 'segmentation' as a list of polygons or an object"),
        ({"size": [40, 60]}, "expected 'segmentation' as a list of polygons or an object"),
        (
            encoded(np.ones((60, 40), bool)),
            r"for a mask of \[height, width\] = \[60, 40\], .* has \[40, 60\]",
        ),
        ({"size": None, "counts": [2400]}, r"\[height, width\] = None"),
        ({"size": [40, 60], "counts": [1000, 1000]}, "does not decode to 40 x 60 pixels"),
        ({"size": [40, 60], "counts": [2500, -100]}, "does not decode"),
        ({"size": [40, 60], "counts": [1200.0, 1200.0]}, "does not decode"),
        ({"size": [40, 60], "counts": []}, "does not decode"),
        ({"size": [40, 60], "counts": None}, "does not decode"),
        ({"size": [40, 60], "counts": ""}, "does not decode"),
        ({"size": [40, 60], "counts": "hello ä"}, "does not decode"),
        ({"size": [40, 60], "counts": encoded(rectangle(1, 1, 9, 9))["counts"][:-1]}, "does not decode"),
        ({"size": [40, 60], "counts": "o" * 50}, "does not decode"),
    ],
)
def test_malformed_masks(tmp_path: Path, segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train2017\.json: annotations\[1\] \(id 2\).*{message}"):
        with_segmentations(tmp_path, [SQUARE], segmentation)


def test_encodings_are_pycocotools(rng: torch.Generator) -> None:
    """Masks of every density and shape; runs long and short, growing and shrinking."""
    for _ in range(60):
        height, width = torch.randint(1, 70, (2,), generator=rng).tolist()
        density = torch.rand((), generator=rng)
        mask = (torch.rand(height, width, generator=rng) < density).numpy()
        if torch.rand((), generator=rng) < 0.5:
            mask[: height // 2] = False
        mask[-1, -1] = True
        packed = PackedMasks()
        assert packed.append(encoded(mask), mask.shape)
        assert packed.append(uncompressed(mask), mask.shape)
        drawn = packed.draw([1, 0], mask.shape)
        np.testing.assert_array_equal(drawn.numpy(), np.stack([mask, mask]))


def test_damaged_encodings_never_reach_pycocotools(rng: torch.Generator) -> None:
    good = encoded(rectangle(3, 5, 50, 30))["counts"]
    accepted = 0
    for _ in range(400):
        damaged = list(good)
        place = int(torch.randint(len(damaged), (), generator=rng))
        damaged[place] = chr(int(torch.randint(48, 112, (), generator=rng)))
        packed = PackedMasks()
        encoding = {"size": list(SIZE), "counts": "".join(damaged)}
        try:
            kept = packed.append(encoding, SIZE)
        except ValueError:
            continue
        accepted += 1
        expected = coco_mask.decode({"size": SIZE, "counts": encoding["counts"].encode()})
        assert kept == expected.any()
        if kept:
            np.testing.assert_array_equal(packed.draw([0], SIZE)[0].numpy(), expected)
    assert accepted < 200


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_sample(split: Any) -> None:
    assert COCO_SAMPLE is not None
    data = build_dataset(COCO_SAMPLE, split, "instance", train=False)
    data.transforms = None
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(data.annotation_file))
    total = 0
    for index, image_id in enumerate(data.image_ids):
        entries = [entry for entry in coco.imgToAnns[image_id] if not entry["iscrowd"]]
        target = data[index][1]
        assert target["labels"].tolist() == [entry["category_id"] for entry in entries]
        for entry, mask in zip(entries, target["masks"].numpy(), strict=True):
            np.testing.assert_array_equal(mask, coco.annToMask(entry))
        total += len(entries)
    assert total == {"train": 73, "val": 54}[split]
