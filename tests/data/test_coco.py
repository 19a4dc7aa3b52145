"""The COCO data set: what a sample holds, and what is said about files that are wrong."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.boxes import box_cxcywh_to_xyxy
from detr_fast.data import CocoDetection, ImageError, TrainTransform, build_detection_dataset
from tests.data.make import CATEGORIES, annotation, image, write_dataset, write_images, write_json
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

FLIP_ONLY = TrainTransform((40,), 100, crop_scales=(40,), crop_size=(40, 60))


def dataset(root: Path, images: list[dict], annotations: list[dict], **options: Any) -> CocoDetection:
    write_dataset(root, images, annotations)
    return CocoDetection(root / "train2017", root / "annotations" / "instances_train2017.json", **options)


def test_sample_by_hand(tmp_path: Path) -> None:
    images = [image(9), image(4, 50, 30)]
    annotations = [
        annotation(1, 9, [1, 2, 10, 20], 7),
        annotation(2, 4, [-5, -5, 20, 10]),
        annotation(3, 9, [0, 0, 60, 40], 3, iscrowd=1),
        annotation(4, 9, [50.5, 30.5, 100, 100], 3),
    ]
    data = dataset(tmp_path, images, annotations)
    assert data.image_ids == [4, 9], "in the order of the ids"
    assert data.num_classes == 8
    assert data.category_names == {3: "car", 7: "bus"}

    picture, target = data[1]
    np.testing.assert_array_equal(
        np.asarray(picture), np.asarray(Image.open(tmp_path / "train2017" / "9.png"))
    )
    assert target["boxes"].tolist() == [[1, 2, 11, 22], [50.5, 30.5, 60, 40]]
    assert target["labels"].tolist() == [7, 3]
    assert target["area"].tolist() == [200, 10000], "the annotated area, as in the official data set"
    assert target["iscrowd"].tolist() == [0, 0]
    assert target["image_id"].tolist() == [9]
    assert target["orig_size"].tolist() == [40, 60]
    assert data[0][1]["boxes"].tolist() == [[0, 0, 15, 5]]
    assert {key: value.dtype for key, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.int64,
        "image_id": torch.int64,
        "orig_size": torch.int64,
    }


def test_useless_boxes_are_removed_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes = [[10, 10, 0, 5], [10, 10, 5, 0], [10, 10, -3, 5], [60, 0, 5, 5], [0, -9, 5, 9], [1, 1, 2, 2]]
    boxes.append([59, 1, 1e-12, 5])  # vanishes in float32
    with caplog.at_level(logging.WARNING):
        data = dataset(tmp_path, [image(1)], [annotation(i, 1, box) for i, box in enumerate(boxes)])
    assert data[0][1]["boxes"].tolist() == [[1, 1, 3, 3]]
    assert "left out 6 boxes" in caplog.text


def test_images_without_annotations_are_kept(tmp_path: Path) -> None:
    data = dataset(tmp_path, [image(1), image(2)], [], transforms=FLIP_ONLY)
    assert len(data) == 2
    for tensor, target in (data[0], data[1]):
        assert tensor.shape[0] == 3
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["area"].shape == (0,)


def test_area_of_the_box_where_none_is_given(tmp_path: Path) -> None:
    rows = [annotation(1, 1, [0, 0, 5, 4]), annotation(2, 1, [-2, 0, 5, 4])]
    del rows[0]["area"]
    rows[1]["area"] = None
    assert dataset(tmp_path, [image(1)], rows)[0][1]["area"].tolist() == [20, 12]


def test_contiguous_labels(tmp_path: Path) -> None:
    rows = [annotation(1, 1, [0, 0, 5, 5], 7), annotation(2, 1, [0, 0, 6, 6], 3)]
    data = dataset(tmp_path, [image(1)], rows, contiguous_labels=True)
    assert data[0][1]["labels"].tolist() == [1, 0]
    assert data.label_to_category == {0: 3, 1: 7}
    assert data.category_to_label == {3: 0, 7: 1}
    assert data.category_names == {0: "car", 1: "bus"}
    assert data.num_classes == 2


def test_category_beyond_num_classes(tmp_path: Path) -> None:
    rows = [annotation(11, 1, [0, 0, 5, 5], 3), annotation(12, 1, [0, 0, 5, 5], 7)]
    message = r"2017\.json has category 7 as label 7; .*0\.\.4 \(num_classes = 5\)"
    with pytest.raises(ValueError, match=message):
        dataset(tmp_path, [image(1)], rows, num_classes=5)
    assert dataset(tmp_path, [image(1)], rows, num_classes=91).num_classes == 91
    assert dataset(tmp_path, [image(1)], rows, num_classes=2, contiguous_labels=True).num_classes == 2


def coco_file(tmp_path: Path, images: Any, annotations: Any, categories: Any = CATEGORIES) -> CocoDetection:
    (tmp_path / "images").mkdir(exist_ok=True)
    return CocoDetection(
        tmp_path / "images", write_json(tmp_path / "a.json", images, annotations, categories)
    )


BOX = [0, 0, 5, 5]


@pytest.mark.parametrize(
    ("images", "annotations", "categories", "message"),
    [
        ([], [], CATEGORIES, "an empty data set: 'images' has no entries"),
        ([image(1)], [], [], "an empty data set: 'categories' has no entries"),
        ({}, [], CATEGORIES, "'images' is missing or not a list"),
        ([image(1)], None, CATEGORIES, "'annotations' is missing or not a list"),
        ([image(1)], [], "car", "'categories' is missing or not a list"),
        ([image(1)], [annotation(5, 2, BOX)], CATEGORIES, r"annotations\[0\] \(id 5\) refers to image 2"),
        (
            [image(1)],
            [annotation(5, 1, BOX, 4)],
            CATEGORIES,
            r"annotations\[0\] \(id 5\) refers to category 4",
        ),
        ([image(1)], [annotation(5, 1, [0, 0, 5])], CATEGORIES, r"\(id 5\): expected 'bbox' as four finite"),
        (
            [image(1)],
            [annotation(5, 1, [0, 0, 5, float("nan")])],
            CATEGORIES,
            "expected 'bbox' as four finite",
        ),
        ([image(1)], [{"image_id": 1, "category_id": 3}], CATEGORIES, r"expected 'bbox' .* got None"),
        ([image(1)], [{"image_id": "1"}], CATEGORIES, "expected 'category_id' as int; got None"),
        ([image(1)], ["box"], CATEGORIES, r"annotations\[0\]: expected an object; got 'box'"),
        ([image(1), image(1)], [], CATEGORIES, r"images\[1\]: the image id 1 occurs twice"),
        (
            [{"id": 1, "file_name": "a.jpg", "width": 5}],
            [],
            CATEGORIES,
            r"images\[0\]: expected 'height' as int",
        ),
        ([image(1)], [], [{"id": 1}], r"categories\[0\]: expected 'name' as str; got None"),
        ([image(1)], [], [{"id": -1, "name": "a"}], r"categories\[0\]: expected a distinct id >= 0 .*got -1"),
    ],
)
def test_wrong_content(tmp_path: Path, images: Any, annotations: Any, categories: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        coco_file(tmp_path, images, annotations, categories)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"images": [', b"\xff\xfe\x00".decode("latin1")])
def test_not_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON file"):
        CocoDetection(tmp_path, path)


@pytest.mark.parametrize("content", [[], 3, None, {"images": 1}])
def test_json_of_something_else(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json: not a COCO instances file"):
        CocoDetection(tmp_path, path)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        CocoDetection(tmp_path / "gone", tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such annotation file"):
        CocoDetection(tmp_path, tmp_path / "a.json")
    for split in ("train", "val"):
        with pytest.raises(FileNotFoundError, match=rf"no {split} split found; expected in it .*2017\.json"):
            build_detection_dataset(tmp_path, split, train=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split: expected 'train' or 'val'; got 'test'"):
        build_detection_dataset(tmp_path, "test", train=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_bad_image"):
        CocoDetection(tmp_path, tmp_path / "a.json", on_bad_image="ignore")  # type: ignore[arg-type]


def with_bad_images(root: Path, **options: Any) -> CocoDetection:
    """Six images, of which 2 is missing and 3 truncated."""
    data = dataset(root, [image(i) for i in range(1, 7)], [], **options)
    (root / "train2017" / "2.png").unlink()
    truncated = root / "train2017" / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:500])
    return data


def test_bad_images_raise_when_read(tmp_path: Path) -> None:
    data = with_bad_images(tmp_path)
    assert data[0][1]["image_id"].item() == 1
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        data[1]
    with pytest.raises(ImageError, match=r"3\.png"):
        data[2]


def test_bad_images_are_replaced_on_demand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = with_bad_images(tmp_path, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [data[i][1]["image_id"].item() for i in range(6)] == [1, 4, 4, 4, 5, 6]
    assert [record.message.count("skipped") for record in caplog.records] == [1, 1], "once a file"
    for entry in (tmp_path / "train2017").iterdir():
        entry.unlink()
    with pytest.raises(ImageError, match="none of the 6 images can be read"):
        data[0]


def test_image_of_another_size(tmp_path: Path) -> None:
    data = dataset(tmp_path, [image(1)], [])
    write_images(tmp_path / "train2017", [image(1, 61, 40)])
    with pytest.raises(ImageError, match=r"1\.png: the image is 61 x 40 pixels, but .*\.json says 60 x 40"):
        data[0]


def test_annotations_of_the_turned_image(tmp_path: Path) -> None:
    data = dataset(tmp_path, [image(1, 60, 40)], [annotation(1, 1, BOX)])
    exif = Image.Exif()
    exif[0x0112] = 8
    stored = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / "train2017" / "1.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(data[0][0]), np.rot90(stored))


def test_index_range(tmp_path: Path) -> None:
    data = dataset(tmp_path, [image(1), image(2)], [])
    assert data[-1][1]["image_id"].item() == 2
    assert [target["image_id"].item() for _, target in data] == [1, 2], "iteration ends"
    with pytest.raises(IndexError, match="index 2 is out of range for 2 images"):
        data[2]


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    augmentation = TrainTransform((30, 40, 50), 80, crop_scales=(30, 40), crop_size=(20, 40))
    data = dataset(tmp_path, [image(i) for i in range(4)], [], transforms=augmentation)

    def sample(seed: int, epoch: int, index: int) -> torch.Tensor:
        data.seed = seed
        data.set_epoch(epoch)
        return data[index][0]

    first = {(s, e, i): sample(s, e, i) for s in (0, 1) for e in (0, 1) for i in range(4)}
    again = {key: sample(*key) for key in reversed(first)}
    assert all(torch.equal(first[key], again[key]) for key in first)
    for a, b in (((0, 0), (0, 1)), ((0, 0), (1, 0))):
        assert any(not torch.equal(first[(*a, i)], first[(*b, i)]) for i in range(4)), "seed and epoch matter"
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[2][0], data[2][0])


def test_standard_layout(tmp_path: Path) -> None:
    rows = [annotation(1, 1, [6, 4, 30, 20])]
    write_dataset(tmp_path, [image(1)], rows, "val")
    data = build_detection_dataset(tmp_path, "val", train=False, scales=(60, 80), max_size=200)
    tensor, target = data[0]
    assert tensor.shape == (3, 80, 120)
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.35, 0.35, 0.5, 0.5]]))
    assert target["size"].tolist() == [80, 120]
    assert target["orig_size"].tolist() == [40, 60]


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
def test_coco_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert COCO_SAMPLE is not None
    train = build_detection_dataset(COCO_SAMPLE, "train", train=True)
    val = build_detection_dataset(COCO_SAMPLE, "val", train=False)
    assert (len(train), len(val)) == (13, 10)
    assert train.num_classes == 91
    assert len(train.category_names) == 80
    assert train.category_names[90] == "toothbrush"

    train.transforms = None
    targets = [target for _, target in train]
    assert sum(len(target["labels"]) for target in targets) == 73, "74 annotations, one of them a crowd"
    assert targets[0]["image_id"].item() == 51191
    assert targets[0]["labels"].tolist() == [64, 81, 86, 86]
    torch.testing.assert_close(targets[0]["boxes"][0], torch.tensor([373.06, 129.63, 481.23, 340.27]))
    assert targets[0]["orig_size"].tolist() == [640, 628]

    samples = [val[i] for i in range(10)]
    assert [len(target["labels"]) for _, target in samples] == [0, 0, 9, 18, 13, 2, 2, 5, 3, 2]
    assert samples[0][0].shape == (3, 807, 800)
    for tensor, target in samples:
        height, width = tensor.shape[1:]
        assert min(height, width) == 800 or max(height, width) == 1333
        corners = box_cxcywh_to_xyxy(target["boxes"])
        assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
        assert (target["boxes"][:, 2:] > 0).all()
    assert capsys.readouterr().out == ""
