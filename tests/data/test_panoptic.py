"""Panoptic data sets: what samples and truth hold, and what is said about PNG and JSON that disagree."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data import CocoPanoptic, ImageError
from detr_fast.tasks import build_dataset
from tests.data.make import PANOPTIC_CATEGORIES, image, segment, write_json, write_panoptic, write_segments
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

CAR, BUS, ROAD, CROWD = 5, 256 * 3, 65536 * 2 + 256 * 9 + 1, 2**24 - 1


def scene() -> np.ndarray:
    """6 x 8: road below, a car, a bus in two parts, a crowd of buses, one corner unlabelled."""
    ids = np.zeros((6, 8), np.int64)
    ids[3:] = ROAD
    ids[1:3, 0:2] = CAR
    ids[2, 4] = ids[4, 6] = BUS
    ids[0, 3:] = CROWD
    return ids


SEGMENTS = [segment(ROAD, 90), segment(CROWD, 7, iscrowd=1), segment(BUS, 7), segment(CAR, 3)]


def dataset(root: Path, ids: Any = None, segments: Any = SEGMENTS, **options: Any) -> CocoPanoptic:
    write_panoptic(root, {12: scene() if ids is None else ids}, {12: segments})
    annotations = root / "annotations"
    return CocoPanoptic(
        root / "train2017",
        annotations / "panoptic_train2017.json",
        annotations / "panoptic_train2017",
        **options,
    )


def test_sample_by_hand(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert data.num_classes == 91
    assert data.things == {3, 7}
    assert data.category_names == {3: "car", 7: "bus", 90: "road"}
    target = data[0][1]
    assert target["labels"].tolist() == [3, 7, 90], "in the order of the segment ids; no crowd"
    assert target["boxes"].tolist() == [[0, 1, 2, 3], [4, 2, 7, 5], [0, 3, 8, 6]]
    assert target["area"].tolist() == [4, 2, 23]
    assert target["iscrowd"].tolist() == [0, 0, 0]
    assert target["orig_size"].tolist() == [6, 8]
    ids = scene()
    np.testing.assert_array_equal(target["masks"].numpy(), np.stack([ids == k for k in (CAR, BUS, ROAD)]))
    assert {key: value.dtype for key, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.int64,
        "image_id": torch.int64,
        "orig_size": torch.int64,
        "masks": torch.bool,
    }
    assert "masks" not in dataset(tmp_path, masks=False)[0][1]


def test_truth_by_hand(tmp_path: Path) -> None:
    data = dataset(tmp_path, contiguous_labels=True)
    ids, segments = data.panoptic_truth(-1)
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), scene())
    assert segments == [
        {"id": CAR, "label": 0, "isthing": True, "iscrowd": False, "area": 4},
        {"id": BUS, "label": 1, "isthing": True, "iscrowd": False, "area": 2},
        {"id": ROAD, "label": 2, "isthing": False, "iscrowd": False, "area": 23},
        {"id": CROWD, "label": 1, "isthing": True, "iscrowd": True, "area": 5},
    ]
    assert (data.num_classes, data.things) == (3, {0, 1})
    with pytest.raises(IndexError, match="index 1 is out of range for 1 images"):
        data.panoptic_truth(1)


def test_semantic_by_hand(tmp_path: Path) -> None:
    data = dataset(tmp_path, contiguous_labels=True, semantic=True)
    ids = scene()
    expected = np.full(ids.shape, 255)
    for segment_id, label in ((CAR, 0), (BUS, 1), (CROWD, 1), (ROAD, 2)):
        expected[ids == segment_id] = label
    np.testing.assert_array_equal(data.semantic_map(0).numpy(), expected)
    target = data[0][1]
    assert target["labels"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(target["masks"].numpy(), np.stack([expected == k for k in range(3)]))
    assert target["boxes"].tolist() == [[0, 1, 2, 3], [3, 0, 8, 5], [0, 3, 8, 6]]
    raw = dataset(tmp_path)
    assert sorted(set(raw.semantic_map(0).flatten().tolist())) == [3, 7, 90, 255]
    raw.num_classes = 256
    with pytest.raises(
        ValueError, match=r"holds labels up to 254; got 256 classes \(pass contiguous_labels=True\)"
    ):
        raw.semantic_map(0)


@pytest.mark.parametrize("semantic", [False, True])
def test_image_without_segments(tmp_path: Path, semantic: bool) -> None:
    data = dataset(tmp_path, np.zeros((6, 8), np.int64), [], semantic=semantic, contiguous_labels=True)
    target = data[0][1]
    assert target["masks"].shape == (0, 6, 8)
    assert target["boxes"].shape == (0, 4)
    assert data.panoptic_truth(0)[1] == []


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (SEGMENTS[1:], rf"12\.png: image 12 has segments that .*\.json does not list: ids \[{ROAD}\]"),
        ([], r"has segments .* does not list: ids \[5, 768, 133377, 16777215\]"),
        ([*SEGMENTS, segment(77, 3)], r"12\.png: image 12 lacks segments that .*\.json lists: ids \[77\]"),
        (
            [*SEGMENTS, *(segment(k, 3) for k in range(70, 78))],
            r"lists: ids \[70, 71, 72, 73, 74\] and 3 more",
        ),
    ],
)
def test_png_and_json_disagree(tmp_path: Path, segments: Any, message: str) -> None:
    data = dataset(tmp_path, segments=segments)
    for read in (data.__getitem__, data.panoptic_truth, data.semantic_map):
        with pytest.raises(ImageError, match=message):
            read(0)


def test_bad_pngs(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    png = data.panoptic_dir / "12.png"
    write_segments(png, scene()[:, :7])
    with pytest.raises(ImageError, match=r"12\.png: the segments are 7 x 6 pixels, but .*\.json says 8 x 6"):
        data[0]
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(png)
    with pytest.raises(ImageError, match=r"12\.png: expected the pixel format RGB; got L"):
        data[0]
    png.write_bytes(b"not a png")
    with pytest.raises(ImageError, match=r"12\.png: not an image"):
        data[0]
    png.unlink()
    with pytest.raises(FileNotFoundError, match=r"12\.png: no such image file"):
        data[0]


def test_bad_pngs_are_replaced_on_demand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_panoptic(
        tmp_path, {1: scene(), 2: scene(), 3: scene()}, {1: SEGMENTS, 2: SEGMENTS[1:], 3: SEGMENTS}
    )
    data = build_dataset(tmp_path, "train", "panoptic", train=True, scales=(64,), on_bad_image="skip")
    (tmp_path / "annotations" / "panoptic_train2017" / "3.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert [target["image_id"].item() for _, target in (data[i] for i in range(3))] == [1, 1, 1]
    assert "does not list" in caplog.text
    assert "3.png: no such image file" in caplog.text


def row(image_id: Any = 1, segments: Any = ()) -> dict[str, Any]:
    return {"image_id": image_id, "file_name": "1.png", "segments_info": list(segments)}


@pytest.mark.parametrize(
    ("rows", "categories", "message"),
    [
        ([], PANOPTIC_CATEGORIES, "image 1 has no annotation"),
        ([row(), row()], PANOPTIC_CATEGORIES, r"annotations\[1\]: image 1 has another annotation before it"),
        ([row(2)], PANOPTIC_CATEGORIES, r"annotations\[0\] refers to image 2, which is not in the file"),
        ([row("2")], PANOPTIC_CATEGORIES, "refers to image '2', which is not in the file"),
        ([row([1])], PANOPTIC_CATEGORIES, r"refers to image \[1\], which is not in the file"),
        ([{"image_id": 1}], PANOPTIC_CATEGORIES, "expected 'file_name' as str"),
        ([{"image_id": 1, "file_name": "1.png"}], PANOPTIC_CATEGORIES, "expected 'segments_info' as list"),
        ([row(1, [segment(5, 4)])], PANOPTIC_CATEGORIES, r"segments_info\[0\] refers to category 4"),
        ([row(1, [segment(0, 3)])], PANOPTIC_CATEGORIES, r"a distinct id in 1\.\.16777215; got 0"),
        ([row(1, [segment(2**24, 3)])], PANOPTIC_CATEGORIES, "a distinct id .* got 16777216"),
        ([row(1, [segment(5, 3), segment(5, 3)])], PANOPTIC_CATEGORIES, r"segments_info\[1\]: .* distinct"),
        ([row(1, ["car"])], PANOPTIC_CATEGORIES, r"segments_info\[0\]: expected 'id' as int; got None"),
        ([row()], [{"id": 3, "name": "car"}], r"categories\[0\]: expected 'isthing' as 0 or 1; got None"),
        (None, PANOPTIC_CATEGORIES, "not a COCO panoptic file: .* 'annotations' is missing"),
    ],
)
def test_wrong_content(tmp_path: Path, rows: Any, categories: Any, message: str) -> None:
    path = write_json(tmp_path / "a.json", [image(1)], rows, categories)
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        CocoPanoptic(tmp_path, path, tmp_path)


def test_category_beyond_num_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has category 90 as label 90; .*num_classes = 90"):
        dataset(tmp_path, num_classes=90)
    assert dataset(tmp_path, num_classes=250).num_classes == 250


def test_missing_folders(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone: no such folder of panoptic PNGs"):
        CocoPanoptic(data.image_dir, data.annotation_file, tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=r"annotations/panoptic_\{train,val\}2017\.json and the folders"
    ):
        build_dataset(tmp_path, "val", "panoptic", train=False)


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
@pytest.mark.parametrize(("split", "count"), [("train", 18), ("val", 14)])
def test_coco_sample(split: Any, count: int) -> None:
    """The official file states boxes and areas, made by other hands from the same PNGs."""
    assert COCO_SAMPLE is not None
    data = build_dataset(COCO_SAMPLE, split, "panoptic", train=False, contiguous_labels=True)
    assert isinstance(data, CocoPanoptic)
    assert (len(data), data.num_classes, data.things) == (count, 133, frozenset(range(80)))
    data.transforms = None
    content = json.loads((COCO_SAMPLE / "annotations" / f"panoptic_{split}2017.json").read_text())
    stated = {row["image_id"]: {s["id"]: s for s in row["segments_info"]} for row in content["annotations"]}
    for i, image_id in enumerate(data.image_ids):
        ids, segments = data.panoptic_truth(i)
        assert {s["id"]: s["area"] for s in segments} == {k: s["area"] for k, s in stated[image_id].items()}
        target = data[i][1]
        assert target["orig_size"].tolist() == list(ids.shape)
        kept = [s for s in segments if not s["iscrowd"]]
        assert target["labels"].tolist() == [s["label"] for s in kept]
        for s, mask, (x0, y0, x1, y1) in zip(kept, target["masks"], target["boxes"].tolist(), strict=True):
            assert torch.equal(mask, ids == s["id"])
            assert [x0, y0, x1 - x0, y1 - y0] == stated[image_id][s["id"]]["bbox"]
            assert data.label_to_category[s["label"]] == stated[image_id][s["id"]]["category_id"]
