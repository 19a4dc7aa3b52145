"""The second start maps what the first one read; whatever is stale, damaged or unwritable is read anew."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_fast.data import annotation_cache
from detr_fast.data.coco_json import Part
from detr_fast.data.instances import COLUMNS, Instances, read_instances
from tests.data.make import annotation, image, write_json

OUTLINE = [[10, 10, 20, 10, 20, 20, 10, 20]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETR_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "SMALLEST", annotation_cache.SAMPLE)
    return tmp_path / "cache" / "annotations"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = [image(i) for i in range(60)]
    rows = [annotation(i, i % 50, [1.0, 2.0, 10.0 + i % 7, 20.0], segmentation=OUTLINE) for i in range(90)]
    return write_json(tmp_path / "a.json", images, rows)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, not mapped."""
    done: list[Path] = []
    real = annotation_cache._write

    def counted(entry: Path, *found: Any) -> None:
        done.append(entry)
        real(entry, *found)

    monkeypatch.setattr(annotation_cache, "_write", counted)
    return done


def same(first: Instances, second: Instances) -> None:
    assert (first.images, first.categories) == (second.images, second.categories)
    assert (first.left_out, first.remarks) == (second.left_out, second.remarks)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(first, column), getattr(second, column))
    assert (first.masks is None) == (second.masks is None)
    if first.masks is not None:
        assert [first.encoding(a) for a in range(len(first))] == [
            second.encoding(a) for a in range(len(first))
        ]


@pytest.mark.parametrize("options", [{}, {"segmentations": True}, {"part": Part("val", 0.3)}])
def test_the_second_start_maps_what_the_first_read(
    file: Path, reads: list[Path], options: dict[str, Any]
) -> None:
    first = read_instances(file, **options)
    second = read_instances(file, **options)
    same(first, second)
    assert len(reads) == 1
    read_instances(file, segmentations=True, part=Part("train", 0.5))
    same(read_instances(file, **options), first)
    assert len(reads) == 2, "options share an entry, or one drives out the other"


def test_files_without_objects(tmp_path: Path, reads: list[Path]) -> None:
    file = write_json(tmp_path / "a.json", [image(i) for i in range(200)], [])
    same(read_instances(file, segmentations=True), read_instances(file, segmentations=True))
    assert len(reads) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "about"])
def test_a_damaged_entry_is_made_anew(
    file: Path, folder: Path, reads: list[Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = read_instances(file, segmentations=True)
    (boxes,) = folder.glob("*/*/boxes_xywh.npy")
    content = bytearray(boxes.read_bytes())
    if damage == "flip":
        content[-5] ^= 4
        boxes.write_bytes(content)
    elif damage == "cut":
        boxes.write_bytes(content[:-9])
    elif damage == "missing":
        boxes.unlink()
    else:
        (boxes.parent / "about.json").write_text('{"content"')
    same(read_instances(file, segmentations=True), first)
    same(read_instances(file, segmentations=True), first)
    assert len(reads) == 2


@pytest.mark.parametrize("change", ["content", "time", "size"])
def test_a_changed_file_is_read_anew(file: Path, folder: Path, reads: list[Path], change: str) -> None:
    read_instances(file)
    read_instances(file, segmentations=True)
    status = file.stat()
    if change == "content":
        file.write_text(file.read_text().replace('"name": "car"', '"name": "cat"'))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        file.write_text(file.read_text() + " ")
    names = read_instances(file).categories
    assert names[3] == ("cat" if change == "content" else "car")
    assert len(reads) == 3
    assert len(list(folder.glob("*/*/about.json"))) == 1, "entries of the old file stay"


def test_where_nothing_can_be_kept_the_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETR_FAST_CACHE", str(file))  # no folder
    assert len(read_instances(file)) == len(read_instances(file)) == 90


def test_errors_are_those_of_reading(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", [image(i) for i in range(60)], [annotation(1, 99, [1, 2, 3, 4])])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"annotations\[0\] \(id 1\) refers to image 99"):
            read_instances(file)


def _open(file: Path) -> int:
    return len(read_instances(file, segmentations=True))


def test_processes_that_start_together_make_one_entry(file: Path, folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_open, [file] * 8) == [90] * 8
    (entry,) = folder.glob("*/*/about.json")
    made = entry.stat().st_mtime_ns
    assert _open(file) == 90
    assert entry.stat().st_mtime_ns == made


def test_what_a_killed_process_left_is_removed(file: Path, folder: Path) -> None:
    read_instances(file)
    (entry,) = (about.parent for about in folder.glob("*/*/about.json"))
    left = entry.with_name(f"{entry.name}.abcd")
    left.mkdir()
    read_instances(file, segmentations=True)
    assert not left.exists()
    assert entry.exists()
