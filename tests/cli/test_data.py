"""Data sets as people have them, from the files to the numbers."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import ok, refused, run
from tests.engine.tiny import SIZE, write_data

SMALL = ["--model", "detr-r18", "--num-queries", 4, "--epochs", 1, "--image-size", SIZE, "--num-workers", 0]
SMALL += ["--device", "cpu"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"), train_images=6, val_images=2)


def content_of(root: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


def odd(root: Path) -> dict[str, Any]:
    """The training file without what may be missing, with ids as an annotation tool gives them."""
    content = content_of(root)
    names = {entry["id"]: str(uuid.UUID(int=entry["id"])) for entry in content["images"]}
    return {
        "images": [{**entry, "id": names[entry["id"]]} for entry in content["images"]],
        "annotations": [
            {"image_id": names[a["image_id"]], "category_id": a["category_id"] + 2**40, "bbox": a["bbox"]}
            for a in content["annotations"]
        ],
        "categories": [{**entry, "id": entry["id"] + 2**40} for entry in content["categories"]],
    }


def test_an_odd_file_trains_and_is_evaluated(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(odd(shapes)))
    (tmp_path / "images").symlink_to(shapes / "train2017")
    source = ["--data", tmp_path, "--val-fraction", 0.34]
    text = ok("train", *source, "--output", tmp_path / "run", *SMALL)
    assert "train: CVAT layout, one file, 34% of the images held out for validation: " in text
    assert "train: 4 images (0 without objects)" in text
    assert "val: 2 images (0 without objects)" in text
    evaluate = ["eval", "--checkpoint", tmp_path / "run" / "last.pt", "--num-workers", 0]
    trained = ok(*evaluate, *source)
    assert len(trained.strip().splitlines()) == 12
    # The other file has other ids for the same names; given by hand.
    by_hand = ["--val-json", shapes / "annotations" / "instances_val2017.json"]
    ok(*evaluate, *by_hand, "--val-images", shapes / "val2017")

    other = content_of(shapes, "val")
    other["categories"] = [{**entry, "name": f"animal {k}"} for k, entry in enumerate(other["categories"])]
    (tmp_path / "other.json").write_text(json.dumps(other))
    by_hand = ["--val-json", tmp_path / "other.json", "--val-images", shapes / "val2017"]
    message = refused(*evaluate, *by_hand)
    assert "of its categories are none of the model's" in message
    assert "animal" in message
    train = ["train", "--data", shapes, *by_hand, "--output", tmp_path / "again", *SMALL]
    assert "of its categories are none of the model's" in refused(*train)
    assert not (tmp_path / "again").exists(), "refused before training"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iscrowd": 1}, "0 objects; left out: "),
        ({"iscrowd": "1"}, "0 objects; left out: "),
        ({"bbox": [0, 0, 0, 5]}, "boxes without an area inside their image"),
        (None, "6 images (6 without objects), 0 objects"),
    ],
)
def test_nothing_to_learn_stops(
    shapes: Path, tmp_path: Path, changes: dict[str, Any] | None, message: str
) -> None:
    content = content_of(shapes)
    rows = [] if changes is None else [{**row, **changes} for row in content["annotations"]]
    (tmp_path / "a.json").write_text(json.dumps({**content, "annotations": rows}))
    files = ["--train-json", tmp_path / "a.json", "--train-images", shapes / "train2017"]
    result = run("train", *files, "--no-evaluate", "--output", tmp_path / "run", *SMALL)
    assert result.exit_code == 2
    assert f"error: {tmp_path / 'a.json'}: nothing to learn from: " in result.output
    assert message in result.output.splitlines()[-1]


def test_words_for_what_is_missing(shapes: Path, tmp_path: Path) -> None:
    train = ["train", "--output", tmp_path / "run", *SMALL]
    assert "data: expected a folder, or a JSON file and an image folder" in refused(*train)
    assert "train_json, train_images: expected both" in refused(*train, "--train-json", tmp_path / "a.json")
    assert "val_fraction: expected a number" in refused(*train, "--data", shapes, "--val-fraction", 1.5)
    assert "exif: expected 'auto', 'apply' or 'ignore'" in refused(*train, "--data", shapes, "--exif", "no")
