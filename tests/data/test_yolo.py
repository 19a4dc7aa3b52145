"""YOLO data sets become COCO data sets; what is wrong in one is named with its file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from detr_fast.data import CocoDetection, convert_yolo
from detr_fast.tasks import build_dataset

NAMES = ["car", "bus", "tram"]


def picture(path: Path, width: int = 40, height: int = 20, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def yolo(root: Path, labels: dict[str, str | None], **config: Any) -> Path:
    """A train split with an image for each label file; None leaves the label file out."""
    for name, text in labels.items():
        picture(root / "images" / "train" / f"{name}.png")
        if text is not None:
            path = root / "labels" / "train" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({"names": NAMES, "train": "images/train", **config}))
    return path


def annotations(output: Path, split: str = "train") -> list[dict[str, Any]]:
    return json.loads((output / "annotations" / f"instances_{split}2017.json").read_text())["annotations"]


def test_by_hand(tmp_path: Path) -> None:
    labels = {
        "a": "0 0.5 0.5 0.25 0.5\n\n2 0.1 0.2 0.9 0.2 0.9 0.8\n",
        "b": "",
        "c": None,
        "d": "1 0.0 0.5 0.5 1.0\n1 1.004 0.5 0.1 0.1\n1 .5 .5 0 .5\n",
    }
    picture(tmp_path / "images" / "val" / "deep" / "e.jpg", 10, 10)
    path = tmp_path / "labels" / "val" / "deep" / "e.txt"
    path.parent.mkdir(parents=True)
    path.write_text("0 0.5 0.5 1 1")
    summary = convert_yolo(yolo(tmp_path, labels, val="images/val", nc=3), tmp_path / "coco")
    train = summary["train"]
    assert (train.images, train.objects, train.masks) == (4, 4, 1)
    assert (train.without_labels, train.clamped, train.without_area) == (1, 2, 1)
    assert "4 images (1 without a label file), 4 objects (1 with masks)" in str(train)
    assert summary["val"].objects == 1

    box, polygon, left, right = annotations(tmp_path / "coco")
    assert (box["category_id"], box["bbox"], box["area"]) == (0, [15, 5, 10, 10], 100)
    assert "segmentation" not in box
    assert (polygon["category_id"], polygon["bbox"], polygon["area"]) == (2, [4, 4, 32, 12], 192)
    assert polygon["segmentation"] == [[4, 4, 36, 4, 36, 16]]
    assert left["bbox"] == [0, 0, 10, 20]
    assert right["bbox"] == [38.16, 9, 1.84, 2]

    data = build_dataset(tmp_path / "coco", "train", "detection", train=False)
    assert data.category_names == dict(enumerate(NAMES))
    assert [len(data[i][1]["labels"]) for i in range(4)] == [2, 0, 0, 2]
    masks = build_dataset(tmp_path / "coco", "train", "instance", train=False)
    masks.transforms = None
    target = masks[0][1]
    assert target["labels"].tolist() == [2], "an object given by its box has no mask"
    assert abs(int(target["masks"].sum()) - 192) <= 32
    val = build_dataset(tmp_path / "coco", "val", "detection", train=False)
    assert (val.image_ids, len(val[0][1]["labels"])) == ([5], 1)


def test_links_and_copies(tmp_path: Path) -> None:
    data = yolo(tmp_path, {"a": ""})
    convert_yolo(data, tmp_path / "linked")
    convert_yolo(data, tmp_path / "copied", images="copy")
    linked, copied = (tmp_path / name / "train2017" / "a.png" for name in ("linked", "copied"))
    assert linked.is_symlink()
    assert not copied.is_symlink()
    assert linked.read_bytes() == copied.read_bytes()
    with pytest.raises(ValueError, match="output: expected a new or empty folder"):
        convert_yolo(data, tmp_path / "copied")
    with pytest.raises(ValueError, match="images: expected 'link' or 'copy'; got 'move'"):
        convert_yolo(data, tmp_path / "moved", images="move")  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", [3, 6])
def test_turned_images_are_written_upright(tmp_path: Path, orientation: int) -> None:
    data = yolo(tmp_path, {"a": "0 0.5 0.25 1 0.5"})
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / "images" / "train" / "a.png", exif=exif)
    convert_yolo(data, tmp_path / "coco")
    dataset = build_dataset(tmp_path / "coco", "train", "detection", train=False)
    dataset.transforms = None
    image, target = dataset[0]
    stored = np.asarray(Image.open(tmp_path / "images" / "train" / "a.png"))
    np.testing.assert_array_equal(np.asarray(image), np.rot90(stored, {3: 2, 6: -1}[orientation]))
    expected = [0, 0, 40, 10] if orientation == 3 else [0, 0, 20, 20]
    assert target["boxes"].tolist() == [expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "expected 5 columns .* got 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 columns"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 columns"),
        ("0", "got 1 columns"),
        ("3 0.5 0.5 0.1 0.1", "class 3 is not among the 3 names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not among"),
        ("0.5 0.5 0.5 0.1 0.1", r"class 0\.5 is not among"),
        ("car 0.5 0.5 0.1 0.1", "expected numbers; got 'car"),
        ("0 20 10 5 5", r"expected coordinates relative to the image, 0\.\.1; got 20"),
        ("0 0.5 0.5 -0.1 0.1", r"0\.\.1; got -0\.1"),
        ("0 0.5 nan 0.1 0.1", r"0\.\.1; got nan"),
        ("0 0.5 0.5 0.1 inf", r"0\.\.1; got inf"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    data = yolo(tmp_path, {"a": "", "b": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    with pytest.raises(ValueError, match=rf"b\.txt: line 2: .*{message}"):
        convert_yolo(data, tmp_path / "coco")
    assert not (tmp_path / "coco").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"names": None}, "expected 'names' as a list or a mapping"),
        ({"names": {"car": 0}}, "expected 'names' as a list or a mapping"),
        ({"nc": 4}, "'nc' is 4, but there are 3 names"),
        ({"train": None}, "expected 'train' or 'val'"),
        ({"train": {"a": "b"}}, "train: expected a folder, a text file or a list"),
        ({"names": {0: "car", 100_000_000_000: "bus"}}, "expected 'names' as a list or a mapping"),
        ({"names": {0: "car", "00": "bus"}}, "expected 'names' as a list or a mapping"),
        ({"names": [["car"]]}, "expected 'names' as a list or a mapping"),
        ({"val": "images/train", "valid": "images"}, "expected 'val' or 'valid'; got both"),
        ({"kpt_shape": [17]}, r"expected 'kpt_shape' as \[points, 2 or 3\]; got \['17'\]"),
        ({"kpt_shape": [0, 3]}, "expected 'kpt_shape'"),
        ({"kpt_shape": [17, 4]}, "expected 'kpt_shape'"),
        ({"train": "labels"}, "train: no images in labels"),
    ],
)
def test_bad_data_yaml(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.yaml: {message}"):
        convert_yolo(yolo(tmp_path, {"a": ""}, **config), tmp_path / "coco")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: no such file"):
        convert_yolo(tmp_path / "data.yaml", tmp_path / "coco")
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: val: .*gone does not exist"):
        convert_yolo(yolo(tmp_path, {"a": ""}, val="gone"), tmp_path / "coco")
    (tmp_path / "data.yaml").write_text("names: [")
    with pytest.raises(ValueError, match="not a YAML file"):
        convert_yolo(tmp_path / "data.yaml", tmp_path / "coco")
    with pytest.raises(ValueError, match=r"none of the 1 images .* would be .*labels/train/b\.txt"):
        convert_yolo(yolo(tmp_path / "b", {"b": None}), tmp_path / "coco")


def test_lists_of_sources(tmp_path: Path) -> None:
    """Sparse classes, a text file of paths, several folders, and the folder that Roboflow names wrongly."""
    data = yolo(
        tmp_path / "set",
        {"a": "7 .5 .5 .5 .5", "b": "2 .5 .5 .5 .5"},
        path="",
        names={2: "bus", 7: "car"},
        train=["../more/images", "list.txt"],
    )
    (tmp_path / "set" / "list.txt").write_text("./images/train/b.png\nimages/train/a.png\n")
    picture(tmp_path / "set" / "more" / "images" / "c.png")
    convert_yolo(data, tmp_path / "coco")
    dataset = CocoDetection(
        tmp_path / "coco" / "train2017",
        tmp_path / "coco" / "annotations" / "instances_train2017.json",
        contiguous_labels=True,
    )
    assert [target["labels"].tolist() for _, target in dataset] == [[], [0], [1]]
    assert dataset.category_names == {0: "bus", 1: "car"}
    (tmp_path / "set" / "list.txt").write_text("images/train/a.png\n./images/train/a.png\n")
    summary = convert_yolo(data, tmp_path / "again")["train"]
    assert (summary.images, summary.repeated_images) == (2, 1)
    assert "1 images listed again" in str(summary)


def test_key_points_are_no_polygons(tmp_path: Path) -> None:
    points = "0.1 0.1 2 0.9 0.9 1 0 0 0"
    data = yolo(tmp_path, {"a": f"0 .5 .5 .5 .5 {points}\n1 .5 .5 .25 .5"}, kpt_shape=[3, 3])
    summary = convert_yolo(data, tmp_path / "coco")["train"]
    assert (summary.objects, summary.masks, summary.clamped) == (2, 0, 0)
    assert [row["bbox"] for row in annotations(tmp_path / "coco")] == [[10, 5, 20, 10], [15, 5, 10, 10]]
    bad = yolo(tmp_path / "bad", {"a": f"0 .5 .5 .5 .5 {points} 0 0"}, kpt_shape=[3, 3])
    with pytest.raises(
        ValueError, match=r"a\.txt: line 1: expected 5 columns .* and 9 of key points.*got 16"
    ):
        convert_yolo(bad, tmp_path / "none")


def test_names_are_what_is_written(tmp_path: Path) -> None:
    """YAML would make truth values, numbers and nothing of them."""
    data = yolo(tmp_path, {"a": "2 .5 .5 .5 .5"})
    written = ["no", "yes", "012", "1.10", "null", "1_000", "on", "~"]
    data.write_text(f"names: [{', '.join(written)}]\nnc: 8\ntrain: images/train\n")
    convert_yolo(data, tmp_path / "coco")
    dataset = build_dataset(tmp_path / "coco", "train", "detection", train=False)
    assert list(dataset.category_names.values()) == written


def test_valid_is_val(tmp_path: Path) -> None:
    data = yolo(tmp_path, {"a": "0 .5 .5 .5 .5"}, valid="images/train")
    assert convert_yolo(data, tmp_path / "coco").keys() == {"train", "val"}


def test_repeated_lines_are_left_out(tmp_path: Path) -> None:
    line = "0 .5 .5 .5 .5\n"
    data = yolo(tmp_path, {"a": line + "1 .5 .5 .5 .5\n" + line + "0 0.50 0.5 .5 .5\n", "b": line})
    summary = convert_yolo(data, tmp_path / "coco")["train"]
    assert (summary.objects, summary.repeated) == (3, 2)
    assert "2 repeated lines" in str(summary)


def test_equal_names_in_different_folders(tmp_path: Path) -> None:
    for place, size in (("a", 40), ("b", 44), ("c", 48)):
        picture(tmp_path / "images" / place / "x.png", size, 20)
        labels = tmp_path / "labels" / place
        labels.mkdir(parents=True)
        (labels / "x.txt").write_text("0 .5 .5 1 1")
    picture(tmp_path / "images" / "a" / "x_3.png", 52, 20)
    (tmp_path / "data.yaml").write_text("names: [car]\ntrain: images\n")
    convert_yolo(tmp_path / "data.yaml", tmp_path / "coco")
    dataset = build_dataset(tmp_path / "coco", "train", "detection", train=False)
    dataset.transforms = None
    assert [image.width for image, _ in dataset] == [40, 52, 44, 48]
    assert [target["boxes"].tolist() for _, target in dataset][2] == [[0, 0, 44, 20]]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "a0: &a0 [x, x]\n"
        + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(30))
        + "names: *a30",
        "names: !!python/object/apply:os.system [ls]",
        "names: " + "x" * 2_000_000,
    ],
)
def test_yaml_that_takes_for_ever(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml: "):
        convert_yolo(tmp_path / "data.yaml", tmp_path / "coco")
