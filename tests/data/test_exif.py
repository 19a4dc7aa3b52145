"""EXIF orientations: an object is where its annotation says, whichever picture the annotation was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_fast.data import CocoDetection, CocoPanoptic, SemanticMaps, load_image
from detr_fast.data import dataset as dataset_module
from detr_fast.data.images import read_header
from tests.data.make import (
    PANOPTIC_CATEGORIES,
    annotation,
    image,
    segment,
    write_json,
    write_segments,
)

# How a camera that was held so stores the upright picture, written with numpy alone.
STORED: dict[int, Any] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}
BOX = [3, 5, 4, 7]  # x, y, w, h of the white object in the upright picture


def upright(width: int, height: int) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[5:12, 3:7] = 255
    return pixels


def save(path: Path, pixels: np.ndarray, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)


def box_of(pixels: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(pixels[..., 0])
    return [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def dataset(
    root: Path, pictures: list[tuple[int, tuple[int, int]]], labels: str, suffix: str = "png", **options: Any
) -> CocoDetection:
    """Images given by orientation and upright size, annotated as they are upright or as they are stored."""
    images, rows = [], []
    for number, (orientation, size) in enumerate(pictures):
        stored = STORED[orientation](upright(*size))
        save(root / f"{number}.{suffix}", stored, orientation)
        annotated = upright(*size) if labels == "upright" else stored
        x, y, w, h = box_of(annotated)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        images.append(image(number, annotated.shape[1], annotated.shape[0], f"{number}.{suffix}"))
        rows.append(annotation(number, number, [x, y, w, h], segmentation=[polygon]))
    return CocoDetection(root, write_json(root / "a.json", images, rows), masks=True, **options)


def share_inside(data: CocoDetection, index: int) -> tuple[float, float]:
    """How much of the box and of the mask shows the object."""
    picture, target = data[index]
    white = np.asarray(picture)[..., 0] > 127
    x0, y0, x1, y1 = target["boxes"][0].int().tolist()
    return float(white[y0:y1, x0:x1].mean()), float(white[target["masks"][0].numpy()].mean())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(24, 16), (16, 24), (20, 20)])
@pytest.mark.parametrize("labels", ["upright", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_objects_are_where_their_annotations_say(
    tmp_path: Path, orientation: int, labels: str, size: tuple[int, int], suffix: str
) -> None:
    """One oblong image that lies on its side tells the convention of the whole data set."""
    data = dataset(tmp_path, [(6, (30, 16)), (orientation, size)], labels, suffix)
    assert data.exif == ("apply" if labels == "upright" else "ignore")
    assert share_inside(data, 0) == share_inside(data, 1) == (1, 1)


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize(
    ("exif", "labels", "words"),
    [
        ("auto", "upright", "2 upright as is usual"),
        ("apply", "upright", "2 upright as asked for"),
        ("ignore", "stored", "2 as stored as asked for"),
    ],
)
def test_where_no_size_tells(tmp_path: Path, orientation: int, exif: Any, labels: str, words: str) -> None:
    pictures = [(orientation, (24, 16)), (5, (20, 20)), (1, (30, 20))]
    data = dataset(tmp_path, pictures, labels, exif=exif)
    assert [share_inside(data, i) for i in range(3)] == [(1, 1)] * 3
    assert data.exif == exif
    assert data.remarks[1:] == (
        f"2 images have an EXIF orientation: by their size 0 are annotated upright, 0 as stored, {words}",
    )


def test_sizes_decide_before_the_option(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(6, (30, 16)), (8, (16, 30)), (3, (24, 16))], "upright", exif="ignore")
    assert [share_inside(data, i)[0] == 1 for i in range(3)] == [True, True, False]
    assert data.remarks[1].endswith(
        "by their size 2 are annotated upright, 0 as stored, 1 as stored as asked for"
    )
    with pytest.raises(ValueError, match="exif: expected 'auto', 'apply' or 'ignore'; got 'turn'"):
        dataset(tmp_path, [(1, (24, 16))], "upright", exif="turn")


def test_images_without_orientation_cost_no_words(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(1, (24, 16)), (1, (20, 20))], "upright")
    assert len(data.remarks) == 1
    assert data.exif == "auto"


def test_many_images_are_sampled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten images three are looked at, and the others only where one of those has an orientation."""
    monkeypatch.setattr(dataset_module, "HEADERS", 3)
    plain, turned = (1, (24, 16)), (6, (24, 16))
    unseen = dataset(tmp_path / "a", [plain, turned, *[plain] * 8], "stored")
    assert unseen.exif == "auto"
    assert share_inside(unseen, 1) == (1, 1), "sizes tell all the same"
    seen = dataset(tmp_path / "b", [turned, turned, *[plain] * 6, turned, (2, (24, 16))], "stored")
    assert seen.exif == "ignore"
    assert "4 images have an EXIF orientation: by their size 0 are annotated upright, 3 as" in seen.remarks[1]
    assert share_inside(seen, 9) == (1, 1)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientations_that_mean_nothing(tmp_path: Path, orientation: int) -> None:
    save(tmp_path / "a.png", upright(24, 16), orientation)
    assert read_header(tmp_path / "a.png") == ((24, 16), 1)
    np.testing.assert_array_equal(
        np.asarray(load_image(tmp_path / "a.png", exif_transpose=True)), upright(24, 16)
    )


def test_damaged_exif_beside_sound_pixels(tmp_path: Path) -> None:
    for name, exif in (
        ("a.png", b"Exif\0\0nonsense"),
        ("b.jpg", b"Exif\0\0II*\0\xff\xff\xff\xff"),
        ("c.jpg", b"x"),
    ):
        Image.fromarray(upright(24, 16)).save(tmp_path / name, exif=exif)
        assert load_image(tmp_path / name, exif_transpose=True).size == (24, 16)
        assert read_header(tmp_path / name) == ((24, 16), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_are_upright_already(tmp_path: Path, orientation: int) -> None:
    """Pillow turns them when it reads them."""
    path = tmp_path / "a.tif"
    save(path, STORED[orientation](upright(24, 16)), orientation)
    assert read_header(path) == ((24, 16), 1)
    for exif_transpose in (False, True):
        pixels = np.asarray(load_image(path, exif_transpose=exif_transpose))
        np.testing.assert_array_equal(pixels, upright(24, 16))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("size", [(24, 16), (20, 20)])
@pytest.mark.parametrize("kind", ["panoptic", "semantic"])
def test_maps_of_upright_images(tmp_path: Path, kind: str, orientation: int, size: tuple[int, int]) -> None:
    picture = upright(*size)
    save(tmp_path / "images" / "1.png", STORED[orientation](picture), orientation)
    ids = np.where(picture[..., 0] > 0, 7, 0)
    if kind == "panoptic":
        write_segments(tmp_path / "maps" / "1.png", ids)
        rows = [{"image_id": 1, "file_name": "1.png", "segments_info": [segment(7, 3)]}]
        path = write_json(tmp_path / "a.json", [image(1, *size)], rows, PANOPTIC_CATEGORIES)
        data: Any = CocoPanoptic(tmp_path / "images", path, tmp_path / "maps")
    else:
        (tmp_path / "maps").mkdir()
        Image.fromarray((ids == 0).astype(np.uint8)).save(tmp_path / "maps" / "1.png")
        data = SemanticMaps(tmp_path / "images", tmp_path / "maps", ["object", "rest"])
    assert share_inside(data, 0) == (1, 1)
    assert "1 images have an EXIF orientation" in data.remarks[-1]
