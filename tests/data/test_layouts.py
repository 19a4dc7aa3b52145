"""Layouts that tools export: what is taken for what, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_fast.data import DataSource, ImageDataset
from detr_fast.tasks import build_dataset
from tests.data.make import (
    CATEGORIES,
    annotation,
    image,
    segment,
    write_dataset,
    write_images,
    write_json,
    write_panoptic,
)


def write_split(json_file: Path, image_dir: Path, ids: range, prefix: str = "", **options: Any) -> None:
    """Images with one object each; the file names them with a prefix that they do not have on disk."""
    images = [image(i) for i in ids]
    write_images(image_dir, images)
    named = [{**entry, "file_name": prefix + entry["file_name"]} for entry in images]
    write_json(json_file, named, [annotation(i, i, [1, 2, 10, 20]) for i in ids], **options)


def build(source: Any, split: Any, **options: Any) -> ImageDataset:
    data = build_dataset(source, split, "detection", train=False, scales=(40,), max_size=60, **options)
    assert [len(data[i][1]["labels"]) for i in range(len(data))] == [1] * len(data), "images are found"
    return data


def test_roboflow(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "vehicles", "supercategory": "none"},
        *({**category, "supercategory": "vehicles"} for category in CATEGORIES),
    ]
    for folder, ids in (("train", range(3)), ("valid", range(10, 12))):
        write_split(
            tmp_path / folder / "_annotations.coco.json", tmp_path / folder, ids, categories=categories
        )
    train, val = build(tmp_path, "train"), build(tmp_path, "val")
    assert (train.image_ids, val.image_ids) == ([0, 1, 2], [10, 11])
    assert train.category_names == {3: "car", 7: "bus"}
    folder = tmp_path / "valid"
    assert val.remarks[0] == f"Roboflow layout: {folder / '_annotations.coco.json'}, images in {folder}"


@pytest.mark.parametrize("folder", ["images/default", "images"])
@pytest.mark.parametrize("prefix", ["", "photos/", "C:\\photos\\", "/data/upload/1/"])
def test_cvat_with_one_file(tmp_path: Path, folder: str, prefix: str) -> None:
    """Folders before the names, as another machine had them, are left out where the images lie without."""
    json_file = tmp_path / "annotations" / "instances_default.json"
    write_split(json_file, tmp_path / folder, range(5), prefix)
    whole = build(tmp_path, "train")
    assert whole.remarks[0] == f"CVAT layout, one file: {json_file}, images in {tmp_path / folder}"
    assert len(whole) == 5


def test_cvat_with_splits(tmp_path: Path) -> None:
    for name, ids in (("train", range(3)), ("validation", range(3, 5))):
        json_file = tmp_path / "annotations" / f"instances_{name}.json"
        write_split(json_file, tmp_path / "images" / name, ids)
    assert build(tmp_path, "train").image_ids == [0, 1, 2]
    assert build(tmp_path, "val").image_ids == [3, 4]


def test_label_studio(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [image(i) for i in range(4)])
    images = [{**image(i), "file_name": f"images/{i}.png"} for i in range(4)]
    write_json(tmp_path / "result.json", images, [annotation(i, i, [1, 2, 10, 20]) for i in range(4)])
    data = build(tmp_path, "train")
    assert (
        data.remarks[0] == f"Label Studio layout, one file: {tmp_path / 'result.json'}, images in {tmp_path}"
    )


def test_files_given_by_hand(tmp_path: Path) -> None:
    write_split(tmp_path / "a.json", tmp_path / "photos", range(4))
    write_split(tmp_path / "b.json", tmp_path / "more", range(10, 12))
    source = DataSource(
        train_json=tmp_path / "a.json",
        train_images=tmp_path / "photos",
        val_json=tmp_path / "b.json",
        val_images=tmp_path / "more",
    )
    assert build(source, "train").image_ids == [0, 1, 2, 3]
    assert build(source, "val").image_ids == [10, 11]
    mixed = DataSource(
        root=write_dataset(tmp_path / "coco", [image(1)], [annotation(1, 1, [1, 2, 10, 20])]),
        val_json=tmp_path / "b.json",
        val_images=tmp_path / "more",
    )
    assert build(mixed, "train").image_ids == [1]
    assert build(mixed, "val").image_ids == [10, 11]


@pytest.mark.parametrize("layout", ["coco", "cvat", "hand"])
def test_a_validation_part_is_cut_off(tmp_path: Path, layout: str) -> None:
    json_file, folder = {
        "coco": ("annotations/instances_train2017.json", "train2017"),
        "cvat": ("annotations/instances_default.json", "images"),
        "hand": ("a.json", "photos"),
    }[layout]
    write_split(tmp_path / json_file, tmp_path / folder, range(20))
    files = {"train_json": tmp_path / json_file, "train_images": tmp_path / folder}
    source = DataSource(
        **(files if layout == "hand" else {"root": tmp_path}),  # type: ignore[arg-type]
        val_fraction=0.2,
    )
    train, val = build(source, "train"), build(source, "val")
    assert (len(train), len(val)) == (16, 4)
    assert sorted(train.image_ids + val.image_ids) == list(range(20))
    assert "20% of the images held out for validation" in train.remarks[0]
    assert build(source, "val").image_ids == val.image_ids
    with pytest.raises(FileNotFoundError, match=r"there is no validation split beside it: cut one off"):
        build(DataSource(**files), "val")


def test_a_validation_split_that_is_there_is_taken(tmp_path: Path) -> None:
    for split, ids in (("train", range(4)), ("val", range(4, 6))):
        write_split(tmp_path / f"annotations/instances_{split}2017.json", tmp_path / f"{split}2017", ids)
    source = DataSource(tmp_path, val_fraction=0.5)
    for split, ids in (("train", [0, 1, 2, 3]), ("val", [4, 5])):
        data = build(source, split)
        assert data.image_ids == ids
        assert "val_fraction is ignored, as there is a validation split" in data.remarks[0]


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_maps_are_cut_too(tmp_path: Path, task: Any) -> None:

    maps = {i: np.full((6, 8), 5, np.int64) for i in range(10)}
    write_panoptic(tmp_path, maps, {i: [segment(5, 3)] for i in maps})
    if task == "semantic":
        (tmp_path / "semantic_train2017").mkdir()
        (tmp_path / "annotations" / "semantic_classes.json").write_text('["car"]')
        for i in maps:
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "semantic_train2017" / f"{i}.png")
    source = DataSource(tmp_path, val_fraction=0.3)
    train, val = (build_dataset(source, split, task, train=False) for split in ("train", "val"))  # type: ignore[arg-type]
    assert (len(train), len(val)) == (7, 3)
    assert sorted(train.image_ids + val.image_ids) == list(range(10))
    assert [val[i][1]["image_id"].item() for i in range(3)] == val.image_ids
    with pytest.raises(ValueError, match="train_json, val_json: they are for detection and instance"):
        build_dataset(DataSource(train_json=tmp_path, train_images=tmp_path), "train", task, train=True)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no train split found; expected in it .*2017\.json .*Roboflow"
    ):
        build(tmp_path, "train")
    write_split(tmp_path / "annotations/instances_train2017.json", tmp_path / "pictures", range(2))
    with pytest.raises(
        FileNotFoundError, match=r"train2017 does not exist; expected the images of .*2017\.json"
    ):
        build(tmp_path, "train")
    for given in ({"train_json": tmp_path}, {"root": tmp_path, "val_images": tmp_path}):
        with pytest.raises(ValueError, match=r"_json, .*_images: expected both or none"):
            DataSource(**given)
    with pytest.raises(ValueError, match="data: expected a folder, or a JSON file and an image folder"):
        DataSource(val_fraction=0.1)
    with pytest.raises(ValueError, match="val_fraction: expected a number above 0 and below 1; got 2"):
        DataSource(tmp_path, val_fraction=2)
