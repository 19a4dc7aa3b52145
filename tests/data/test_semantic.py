"""Label maps: samples by hand, and what is said about maps that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_fast.data import CocoPanoptic, ImageError, SemanticMaps
from detr_fast.tasks import build_dataset
from tests.data.make import image, segment, write_images, write_panoptic

CLASSES = ["sky", "road", "car"]
MAP = np.array([[0, 0, 0, 255], [255, 2, 0, 0], [1, 1, 1, 1]], np.uint8)


def write_map(root: Path, name: str = "7", labels: Any = MAP, split: str = "train") -> Path:
    height, width = labels.shape
    write_images(root / f"{split}2017", [image(7, width, height, f"{name}.jpg")])
    folder = root / f"semantic_{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(folder / f"{name}.png")
    return root


def dataset(root: Path, classes: Any = CLASSES, **options: Any) -> SemanticMaps:
    return SemanticMaps(root / "train2017", root / "semantic_train2017", classes, **options)


def test_sample_by_hand(tmp_path: Path) -> None:
    data = dataset(write_map(tmp_path))
    assert (data.image_ids, data.num_classes, data.things) == ([7], 3, frozenset())
    assert data.category_names == {0: "sky", 1: "road", 2: "car"}
    assert data.annotation_file is None
    np.testing.assert_array_equal(data.semantic_map(0).numpy(), MAP)
    target = data[0][1]
    assert target["labels"].tolist() == [0, 1, 2]
    assert target["boxes"].tolist() == [[0, 0, 4, 2], [0, 2, 4, 3], [1, 1, 2, 2]]
    assert target["area"].tolist() == [5, 4, 1]
    assert target["orig_size"].tolist() == [3, 4]
    np.testing.assert_array_equal(target["masks"].numpy(), np.stack([k == MAP for k in range(3)]))
    ignored = dataset(write_map(tmp_path, labels=np.full_like(MAP, 255)))
    assert ignored[0][1]["masks"].shape == (0, 3, 4)
    assert "masks" not in dataset(tmp_path, masks=False)[0][1]


def test_palette_maps_keep_their_indices(tmp_path: Path) -> None:
    write_map(tmp_path)
    picture = Image.fromarray(MAP)
    picture.putpalette(list(range(255, -1, -1)) * 3)
    assert picture.mode == "P"
    picture.save(tmp_path / "semantic_train2017" / "7.png")
    np.testing.assert_array_equal(dataset(tmp_path).semantic_map(0).numpy(), MAP)


def test_image_ids(tmp_path: Path) -> None:
    for name in ("10", "9"):
        write_map(tmp_path, name)
    write_images(tmp_path / "train2017", [image(1, file_name="without_a_map.png")])
    assert dataset(tmp_path).image_ids == [9, 10]
    write_map(tmp_path, "street")
    data = dataset(tmp_path)
    assert data.image_ids == [1, 2, 3]
    assert data[2][1]["image_id"].tolist() == [3]


def test_layout(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_map(tmp_path, split=split)
    with pytest.raises(
        FileNotFoundError, match=r"semantic_classes\.json does not exist; expected .*semantic_"
    ):
        build_dataset(tmp_path, "train", "semantic", train=True)
    classes = tmp_path / "annotations" / "semantic_classes.json"
    classes.parent.mkdir()
    classes.write_text(json.dumps(CLASSES))
    data = build_dataset(tmp_path, "train", "semantic", train=True, scales=(32,), max_size=64)
    assert isinstance(data, SemanticMaps)
    assert data.annotation_file == classes
    tensor, target = data[0]
    assert target["masks"].shape[1:] == tensor.shape[1:]
    assert build_dataset(tmp_path, "val", "semantic", train=False).category_names[2] == "car"


def test_from_panoptic_where_there_are_no_maps(tmp_path: Path) -> None:
    write_panoptic(tmp_path, {1: np.full((4, 4), 5)}, {1: [segment(5, 90)]})
    data = build_dataset(tmp_path, "train", "semantic", train=False, contiguous_labels=True)
    assert isinstance(data, CocoPanoptic)
    assert data[0][1]["labels"].tolist() == [2]
    with pytest.raises(FileNotFoundError, match=r"expected the COCO 2017 layout: .*panoptic_"):
        build_dataset(tmp_path, "val", "semantic", train=False)


def test_bad_maps(tmp_path: Path) -> None:
    data = dataset(write_map(tmp_path))
    png = tmp_path / "semantic_train2017" / "7.png"
    Image.fromarray(np.where(MAP == 2, 3, MAP).astype(np.uint8)).save(png)
    with pytest.raises(ImageError, match=r"7\.png: expected labels 0\.\.2 and 255; got \[3\]"):
        data[0]
    Image.fromarray(MAP[:, :3]).save(png)
    with pytest.raises(ImageError, match=r"7\.jpg: the image is 4 x 3 pixels, but .*7\.png says 3 x 3"):
        data[0]
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(png)
    with pytest.raises(ImageError, match=r"7\.png: expected the pixel format L or P; got RGB"):
        data[0]
    png.unlink()
    with pytest.raises(FileNotFoundError, match=r"7\.png"):
        data[0]


def test_bad_arguments(tmp_path: Path) -> None:
    write_map(tmp_path)
    for classes in ([], ["x"] * 256, [1, 2]):
        with pytest.raises(ValueError, match=r"classes: expected 1\.\.255 names"):
            dataset(tmp_path, classes)
    with pytest.raises(ValueError, match="num_classes: expected at least the 3 classes; got 2"):
        dataset(tmp_path, num_classes=2)
    assert dataset(tmp_path, num_classes=19).num_classes == 19
    path = tmp_path / "classes.json"
    with pytest.raises(FileNotFoundError, match=r"classes\.json: no such class file"):
        dataset(tmp_path, path)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"classes\.json: expected a list of class names; got dict"):
        dataset(tmp_path, path)
    (tmp_path / "train2017" / "7.png").write_bytes((tmp_path / "train2017" / "7.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"7\.png: several images in .*\['7\.jpg', '7\.png'\]"):
        dataset(tmp_path)
    for entry in (tmp_path / "train2017").iterdir():
        entry.unlink()
    with pytest.raises(FileNotFoundError, match=r"7\.png: no image of that name"):
        dataset(tmp_path)
    (tmp_path / "semantic_train2017" / "7.png").unlink()
    with pytest.raises(ValueError, match="an empty data set: no PNG files"):
        dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of label maps"):
        SemanticMaps(tmp_path, tmp_path / "gone", CLASSES)
    for name, options in (("task", {"task": "boxes"}), ("augmentation", {"augmentation": "ssd"})):
        with pytest.raises(ValueError, match=rf"{name}: expected 'det.* got"):
            build_dataset(tmp_path, "train", **{"task": "instance", "train": True, **options})  # type: ignore[arg-type]
