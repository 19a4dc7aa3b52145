"""Odd annotations: what they come to, what is refused, and that evaluation goes by the same view."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detr_fast.data import CocoDetection
from detr_fast.data.coco_json import Part
from detr_fast.data.instances import (
    NO_AREA,
    NO_MASK,
    NO_PLACE,
    EntryReader,
    Instances,
    _read,
    read_instances,
)
from detr_fast.data.typed_coco import NotTyped, TypedReader
from detr_fast.metrics import coco_metrics
from tests.data.make import CATEGORIES, annotation, image, write_json

SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]
RUNS = {"size": [40, 60], "counts": [0, 120, 2280]}  # the three leftmost columns


def read(folder: Path, rows: list[Any], images: Any = None, **options: Any) -> Instances:
    path = write_json(folder / "a.json", images or [image(1), image(2)], rows)
    return read_instances(path, **options)


def row(**changes: Any) -> dict[str, Any]:
    """A good annotation with some entries changed, or removed where `...` is given."""
    entries = {**annotation(1, 1, [1, 2, 10, 20]), **changes}
    return {key: value for key, value in entries.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iscrowd": ...}, {"crowd": False}),
        ({"iscrowd": None}, {"crowd": False}),
        ({"iscrowd": False}, {"crowd": False}),
        ({"iscrowd": 0.0}, {"crowd": False}),
        ({"iscrowd": "0"}, {"crowd": False}),
        ({"iscrowd": "1"}, {"crowd": True}),
        ({"iscrowd": True}, {"crowd": True}),
        ({"area": ...}, {"area": 200}),
        ({"area": None}, {"area": 200}),
        ({"area": "400"}, {"area": 400}),
        ({"area": "4e2"}, {"area": 400}),
        ({"area": 0}, {"area": 0}),
        ({"id": ...}, {}),
        ({"id": [{}]}, {}),
        ({"image_id": "2"}, {"image": 1}),
        ({"image_id": 2.0}, {"image": 1}),
        ({"category_id": "7"}, {"category": 7}),
        ({"category_id": 7.0}, {"category": 7}),
        ({"bbox": [1, 2, 1e308, 20.0]}, {"boxes_xywh": [1, 2, 59, 20]}),
        ({"bbox": [-5, 30, 10, 20]}, {"boxes_xywh": [0, 30, 5, 10]}),
        ({"bbox": ..., "segmentation": [SQUARE]}, {"boxes_xywh": [10, 10, 10, 10]}),
        ({"bbox": None, "segmentation": RUNS}, {"boxes_xywh": [0, 0, 3, 40]}),
        ({"bbox": [], "segmentation": RUNS, "area": None}, {"area": 120}),
        ({"bbox": ..., "segmentation": RUNS, "iscrowd": 1}, {"crowd": True, "boxes_xywh": [0, 0, 3, 40]}),
    ],
)
def test_what_odd_entries_come_to(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    data = read(tmp_path, [row(**changes), row()])
    assert data.left_out == {}
    place = int(np.flatnonzero(data.image == 1)[0]) if "image" in expected else 0
    assert {key: getattr(data, key)[place].tolist() for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iscrowd": [0]}, r"'iscrowd' as 0 or 1; got \[0\]"),
        ({"iscrowd": 2}, "'iscrowd' as 0 or 1; got 2"),
        ({"iscrowd": "yes"}, "'iscrowd' as 0 or 1; got 'yes'"),
        ({"area": float("nan")}, "'area' as a number of .*; got nan"),
        ({"area": float("inf")}, "'area' as a number of .*; got inf"),
        ({"area": -1}, "'area' as a number of .*; got -1"),
        ({"area": 1e11}, "'area' as a number of .*; got 100000000000"),
        ({"area": 10**400}, "'area' as a number of .*; got 1000"),
        ({"area": True}, "'area' as a number of .*; got True"),
        ({"area": "large"}, "'area' as a number of .*; got 'large'"),
        ({"area": [4]}, r"'area' as a number of .*; got \[4\]"),
        ({"bbox": "1234"}, "'bbox' as four finite numbers .*; got '1234'"),
        ({"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, "'bbox' as four finite numbers"),
        ({"bbox": [1, 2, 3]}, "'bbox' as four finite numbers"),
        ({"bbox": [1, 2, True, 4]}, "'bbox' as four finite numbers"),
        ({"bbox": [1, 2, "3", 4]}, "'bbox' as four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "'bbox' as four finite numbers"),
        ({"bbox": [1, 2, None, 4]}, "'bbox' as four finite numbers"),
        ({"bbox": [[1], [2], [3], [4]]}, "'bbox' as four finite numbers"),
        ({"bbox": ...}, "'bbox' as four finite numbers .*; got None"),
        ({"bbox": ..., "segmentation": [[1, 2, 3, 4]]}, "'bbox' as four finite numbers .*; got None"),
        ({"image_id": None}, "'image_id' as int or str; got None"),
        ({"image_id": True}, "'image_id' as int or str; got True"),
        ({"image_id": 1.5}, "'image_id' as int or str; got 1.5"),
        ({"image_id": "one"}, "refers to image 'one', which is not in the file"),
        ({"category_id": None}, "'category_id' as int; got None"),
        ({"category_id": 2**53 + 1}, "refers to category 9007199254740993"),
        ({"category_id": {}}, r"'category_id' as int; got \{\}"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: annotations\[1\] \(id .*{message}"):
        read(tmp_path, [row(), row(**changes)])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{**image(1), "width": 0}], "'width' and 'height' >= 1"),
        ([{**image(1), "height": -4}], "'width' and 'height' >= 1"),
        ([{**image(1), "width": "wide"}], "'width' as int; got 'wide'"),
        ([{**image(1), "width": 2**31}], "'width' and 'height' >= 1"),
        ([{**image(1), "id": None}], "'id' as int or str; got None"),
        ([{**image(1), "id": ""}], "'id' as int or str; got ''"),
        ([{**image(1), "file_name": None}], "'file_name' as str; got None"),
        ([image(1), {**image(2), "id": 1.0}], "the image id 1 occurs twice"),
        (["1.png"], "expected an object; got '1.png'"),
    ],
)
def test_images_that_are_refused(tmp_path: Path, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: images\[.\]: .*{message}"):
        read(tmp_path, [], images)


@pytest.mark.parametrize("category", [-1, 10**30, 2**53, 1.5, "one", True, None])
def test_category_ids_are_bounded(tmp_path: Path, category: Any) -> None:
    path = write_json(tmp_path / "a.json", [image(1)], [], [{"id": category, "name": "car"}])
    with pytest.raises(ValueError, match=r"categories\[0\]: expected"):
        read_instances(path)


def test_large_category_ids_need_contiguous_labels(tmp_path: Path) -> None:
    categories = [{"id": 2**40, "name": "car"}, {"id": 2**40 + 1, "name": "bus"}]
    path = write_json(
        tmp_path / "a.json", [image(1)], [annotation(1, 1, [0, 0, 5, 5], 2**40 + 1)], categories
    )
    with pytest.raises(ValueError, match="expected category ids up to 99999 as labels"):
        CocoDetection(tmp_path, path)
    for choice in (True, None):
        data = CocoDetection(tmp_path, path, contiguous_labels=choice)
        assert (data.num_classes, data.label_to_category[1], data.used_labels) == (2, 2**40 + 1, {1})


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        row(bbox=[70, 70, 5, 5]),
        row(segmentation=None),
        row(segmentation=[[1, 2, 3, 4], []]),
        row(segmentation=[SQUARE]),
        row(iscrowd=1),
        row(iscrowd=1, bbox=...),
        row(iscrowd=1, bbox=..., segmentation=[]),
        row(iscrowd=1, segmentation=RUNS),
    ]
    data = read(tmp_path, rows, segmentations=True)
    assert data.left_out == {NO_AREA: 1, NO_MASK: 2, NO_PLACE: 2}
    assert data.crowd.tolist() == [False, True, True]
    boxes = read(tmp_path, rows)
    assert boxes.left_out == {NO_AREA: 1, NO_PLACE: 2}, "detection needs no masks"
    (tmp_path / "images").mkdir()
    dataset = CocoDetection(tmp_path / "images", tmp_path / "a.json", masks=True)
    assert dataset.remarks == (
        "2 images (1 without objects), 1 objects; left out: 2 crowds, "
        f"2 {NO_PLACE}, 1 {NO_AREA}, 2 {NO_MASK}",
    )


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40, 60], "counts": [0, 2401]},
        {"size": [40, 60], "counts": [0, 2**32 - 1, 2**32 - 1]},
        {"size": [40, 60], "counts": "zzzzzzzz"},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[-1e5, 0, 1e5, 0] * 12],
    ],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_masks_that_pycocotools_dies_of_never_reach_it(tmp_path: Path, segmentation: Any, crowd: int) -> None:
    """They hang or crash it, or take all memory."""
    with pytest.raises(ValueError, match=r"annotations\[0\] \(id 1\): (segmentation\[0\]|the run-length)"):
        read(tmp_path, [row(segmentation=segmentation, iscrowd=crowd)], segmentations=True)
    with pytest.raises(ValueError, match=r"annotations\[0\] \(id 1\): (segmentation\[0\]|the run-length)"):
        read(tmp_path, [row(segmentation=segmentation, iscrowd=crowd, bbox=...)])


def test_deep_and_broken_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, message in (
        ("[" * 100_000, "a sensible depth"),
        ('{"images": ' + "9" * 5000 + "}", "not a JSON file"),
        ('\ufeff{"images": []}', "not a COCO instances file"),
        ('{"images": [' + '{"a": [' * 300 + "]}" * 300 + "]}", "not a COCO instances file"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_instances(path)


# How annotation ids, image ids and category ids are given.
IDS: dict[str, Any] = {
    "from 0": lambda n: n,
    "from 1": lambda n: n + 1,
    "all equal": lambda n: 7,
    "missing": lambda n: ...,
    "null": lambda n: None,
    "uuid": lambda n: str(uuid.UUID(int=n * 7919)),
    "strings": str,
    "negative": lambda n: -n,
    "floats": lambda n: float(n),
    "huge": lambda n: 10**30 + n,
}
IMAGE_IDS = {
    name: IDS[name] for name in ("from 0", "from 1", "uuid", "strings", "negative", "floats", "huge")
}
AREAS: dict[str, Any] = {
    "right": lambda area: area,
    "missing": lambda area: ...,
    "null": lambda area: None,
    "string": str,
}
CROWD_FLAGS: dict[str, Any] = {"0": 0, "missing": ..., "null": None, "string": "0", "false": False}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.sampled_from(sorted(IDS)),
    image_ids=st.sampled_from(sorted(IMAGE_IDS)),
    area=st.sampled_from(sorted(AREAS)),
    crowd_flag=st.sampled_from(sorted(CROWD_FLAGS)),
    first_category=st.sampled_from([0, 1, 5, 2**50]),
    restart=st.booleans(),
    objects=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=6), min_size=1, max_size=4
    ),
    extras=st.lists(
        st.sampled_from(["no mask", "no area", "crowd", "crowd without box", "sliver"]), max_size=3
    ),
    kind=st.sampled_from(["bbox", "segm"]),
)
def test_perfect_predictions_score_one_whatever_the_file_looks_like(
    tmp_path: Path,
    ids: str,
    image_ids: str,
    area: str,
    crowd_flag: str,
    first_category: int,
    restart: bool,
    objects: list[list[tuple[int, int]]],
    extras: list[str],
    kind: Literal["bbox", "segm"],
) -> None:
    images, rows, detections = [], [], []
    for i, of_image in enumerate(objects):
        image_id = IMAGE_IDS[image_ids](i)
        images.append({**image(1), "id": image_id, "file_name": f"{i}.png"})
        for k, (place, category) in enumerate(of_image):
            x, y, side = 2 + 9 * k, 3 + 9 * place, 4 + place
            box, polygon = [x, y, side, side], [x, y, x + side, y, x + side, y + side, x, y + side]
            common = {"image_id": image_id, "category_id": first_category + category}
            entry = {
                **common,
                "id": IDS[ids](k if restart else len(rows)),
                "bbox": box,
                "segmentation": [polygon],
                "area": AREAS[area](side * side),
                "iscrowd": CROWD_FLAGS[crowd_flag],
            }
            rows.append({key: value for key, value in entry.items() if value is not ...})
            detections.append({**common, "bbox": box, "segmentation": [polygon], "score": 0.5 + 0.01 * k})
    common = {"image_id": IMAGE_IDS[image_ids](0), "category_id": first_category}
    for extra in extras:
        changes: dict[str, Any] = {
            "no mask": {"bbox": [1, 1, 3, 3], "segmentation": [[1, 2]]},
            "no area": {"bbox": [1, 1, 0, 3], "segmentation": [SQUARE]},
            "crowd": {"bbox": [0, 0, 60, 40], "segmentation": RUNS, "iscrowd": 1},
            "crowd without box": {"segmentation": RUNS, "iscrowd": "1"},
            "sliver": {"bbox": [3, 3, 1, 1], "segmentation": [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]},
        }[extra]
        rows.insert(0, {**common, **changes})
        if kind == "bbox" and extra in ("no mask", "sliver"):  # objects all the same
            detections.append({**common, "bbox": changes["bbox"], "score": 0.9})
    categories = [{"id": first_category + k, "name": name} for k, name in enumerate(("car", "bus"))]
    path = write_json(tmp_path / "a.json", images, rows, categories)
    data = CocoDetection(tmp_path, path, masks=kind == "segm" and bool(detections), contiguous_labels=True)
    assert data.num_objects is not None
    metrics = coco_metrics(data.instances if detections else path, detections, kind=kind)
    if detections:
        assert (metrics["AP"], metrics["AR100"]) == pytest.approx((1.0, 1.0))
    else:
        assert metrics["AP"] == -1


@pytest.mark.parametrize("ids", ["from 0", "all equal", "restart", "uuid", "missing"])
@pytest.mark.parametrize("count", [10, 100])
def test_annotation_ids_do_not_change_the_score(tmp_path: Path, ids: str, count: int) -> None:
    """pycocotools alone scores these perfect predictions 0.98, 0.81, 0.001 and 0."""
    images = [image(i) for i in range(1, 11)]
    rows = []
    for n in range(count):
        entry = annotation(n, 1 + n % 10, [n % 40, n % 17, 5 + n % 11, 6 + n % 7])
        value = IDS[ids](n) if ids in IDS else n // 10 + 1
        rows.append({key: v for key, v in {**entry, "id": value}.items() if v is not ...})
    path = write_json(tmp_path / "a.json", images, rows)
    detections = [
        {**{key: entry[key] for key in ("image_id", "category_id", "bbox")}, "score": 1 - n / 1000}
        for n, entry in enumerate(rows)
    ]
    assert coco_metrics(path, detections)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 3}, "detections.0.: image 3 is not in the annotations"),
        ({"category_id": 5}, "category 5 is not in .*a.json"),
        ({"category_id": []}, r"category \[\] is not in .*a.json"),
        ({"image_id": True}, "image True is not in the annotations"),
        ({"score": float("nan")}, "expected 'score' as a finite number; got nan"),
        ({"score": "0.9"}, "expected 'score' as a finite number; got '0.9'"),
        ({"score": True}, "expected 'score' as a finite number; got True"),
        ({"bbox": [0, 0, 1, float("inf")]}, "expected 'bbox' as four finite numbers"),
        ({"bbox": "1234"}, "expected 'bbox' as four finite numbers .*; got '1234'"),
        ({"bbox": [1, 2, 3]}, "expected 'bbox' as four finite numbers"),
        ({"bbox": None}, "expected 'bbox' as four finite numbers .*; got None"),
        ({"score": ...}, "expected 'score' for kind='bbox'"),
    ],
)
def test_detections_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_json(tmp_path / "a.json", [image(1)], [row()])
    good = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.9}
    numbers = {"image_id": np.int64(1), "category_id": np.int64(3), "score": torch.tensor(0.5)}
    for same in ({}, {"image_id": "1", "category_id": "3"}, {"bbox": np.array([1, 2, 10, 20])}, numbers):
        assert coco_metrics(path, iter([{**good, **same}]))["AP"] == pytest.approx(1.0)
    bad = {key: value for key, value in {**good, **changes}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        coco_metrics(path, [bad])


def test_the_group_of_all_categories_is_none_of_them(tmp_path: Path) -> None:
    """As Roboflow exports them."""
    categories = [
        {"id": 0, "name": "fish", "supercategory": "none"},
        {"id": 1, "name": "carp", "supercategory": "fish"},
        {"id": 2, "name": "eel", "supercategory": "fish"},
    ]
    rows = [annotation(1, 1, [1, 1, 5, 5], 2)]
    path = write_json(tmp_path / "a.json", [image(1)], rows, categories)
    data = CocoDetection(tmp_path, path, contiguous_labels=True)
    assert data.category_names == {0: "carp", 1: "eel"}
    assert "category 0 (fish) is the group of the others and has no objects: left out" in data.remarks
    used = write_json(tmp_path / "b.json", [image(1)], [annotation(1, 1, [1, 1, 5, 5], 0)], categories)
    assert CocoDetection(tmp_path, used).category_names[0] == "fish"
    apart = [categories[0], {**categories[1], "supercategory": "animal"}]
    assert 0 in CocoDetection(tmp_path, write_json(tmp_path / "c.json", [image(1)], [], apart)).category_names
    assert CocoDetection(tmp_path, write_json(tmp_path / "d.json", [image(1)], [], CATEGORIES)).remarks == (
        "1 images (1 without objects), 0 objects",
    )


def test_boxes_in_other_conventions_are_doubted(tmp_path: Path) -> None:
    assert read(tmp_path, [row(), row(bbox=[-0.5, 0, 60.5, 40.9])]).remarks == ()
    corners = read(tmp_path, [row(), row(bbox=[30, 20, 50, 38]), row(bbox=[-9, 0, 60, 40])])
    assert corners.remarks == (
        "2 boxes reach out of their image and are cut: are they [x, y, width, height]?",
    )
    relative = read(tmp_path, [row(bbox=[0.1, 0.2, 0.5, 0.9]), row(bbox=[0, 0, 1, 1])])
    assert relative.remarks == ("all boxes lie within one pixel: are they in pixels?",)
    # many, that all fit another format, are no accident
    with pytest.raises(ValueError, match=r"got 12 of 12 that reach out of .*: they look like corners \[x0"):
        read(tmp_path, [row(bbox=[30, 20, 50, 38])] * 12)
    with pytest.raises(ValueError, match=r"got 12 boxes within one pixel: they look like fractions"):
        read(tmp_path, [row(bbox=[0.1, 0.2, 0.5, 0.9])] * 12)
    amodal = [row(bbox=[-9, 0, 60, 40]), *[row(bbox=[20, 10, 5, 6])] * 3] * 4
    assert read(tmp_path, amodal).remarks[0].startswith("4 boxes reach out of their image and are cut")


def test_parts_are_disjoint_and_complete(tmp_path: Path) -> None:
    images = [image(i) for i in range(20)] + [image(20, file_name="3.png")]
    rows = [annotation(i, i, [1, 1, 5, 5]) for i in range(21)]
    path = write_json(tmp_path / "a.json", images, rows)
    train, val = (read_instances(path, part=Part(name, 0.2)) for name in ("train", "val"))  # type: ignore[arg-type]
    assert sorted(train.images.ids + val.images.ids) == list(range(21))
    assert set(train.images.files).isdisjoint(val.images.files), "copies of an image stay together"
    assert len(set(val.images.files)) == 4
    for part in (train, val):
        assert [part.images.ids[i] for i in part.image] == part.images.ids, "each with its own object"
    again = read_instances(path, part=Part("val", 0.2))
    assert again.images.ids == val.images.ids
    assert read_instances(path, part=Part("val", 0.2, seed=1)).images.ids != val.images.ids
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="val_fraction: expected a number above 0 and below 1"):
            Part("val", fraction)
    one = write_json(tmp_path / "b.json", [image(1)], [])
    with pytest.raises(ValueError, match="val_fraction: one image cannot be cut into two parts"):
        read_instances(one, part=Part("val", 0.5))


def test_repeated_images_and_names_are_told(tmp_path: Path) -> None:
    images = [image(1), image(2, file_name="1.png"), {**image(3), "id": "c"}]
    data = CocoDetection(tmp_path, write_json(tmp_path / "a.json", images, []))
    assert data.image_ids == [1, 2, 3]
    assert data.remarks[1:] == (
        "image ids are no integers of 64 bits, as 'c': numbered from 1",
        "1 images are listed again under another id",
    )


def odd_content(random: Random) -> bytes:
    """An ordinary file in which a few things are as some tool or accident writes them."""

    def box() -> list[float]:
        return [random.uniform(-5, 50), random.uniform(-5, 30), random.uniform(0, 30), random.uniform(0, 30)]

    def outline() -> list[float]:
        return [round(random.uniform(0, 40), 1) for _ in range(2 * random.randrange(1, 8))]

    ids = random.sample(range(100), 6)
    images = [image(i, 60, 40) for i in ids]
    annotations: list[dict[str, Any]] = [
        {
            **annotation(n, random.choice(ids), box(), random.choice([3, 7]), int(random.random() < 0.3)),
            "segmentation": random.choice(
                [
                    [outline() for _ in range(random.randrange(3))],
                    {"size": [40, 60], "counts": [50, 20, 2330]},
                ]
            ),
        }
        for n in range(random.randrange(12))
    ]
    strange = [None, "", "7", 7, 7.0, 7.5, -1, 2**63, 2**70, 1e300, True, [], [1], {}, "\ud800", [[1, 2, 3]]]
    for _ in range(random.randrange(4)):
        entry = random.choice(random.choice([images, annotations, [{}]]) or [{}])
        key = random.choice([*entry, "new"])
        if random.random() < 0.3:
            entry.pop(key, None)
        else:
            entry[key] = random.choice(strange)
    text = json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
    if random.random() < 0.1:
        text = text.replace(str(random.choice(ids)), random.choice(["NaN", "1e999", "-0", "03", '"\xe9"']), 1)
    return text.encode(random.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]))


@pytest.mark.parametrize("segmentations", [False, True])
def test_files_are_read_alike_by_type_and_entry_by_entry(
    tmp_path: Path, rng: torch.Generator, segmentations: bool
) -> None:
    random = Random(int(torch.randint(2**31, (), generator=rng)))
    path, typed = tmp_path / "a.json", 0
    for _ in range(150):
        path.write_bytes(odd_content(random))
        try:
            ours = _read(path, TypedReader(path, segmentations=segmentations), segmentations, None)
        except NotTyped:
            continue
        typed += 1
        careful = _read(path, EntryReader(path), segmentations, None)
        assert (ours.images, ours.categories) == (careful.images, careful.categories)
        assert (ours.left_out, ours.remarks) == (careful.left_out, careful.remarks)
        for column in ("image", "category", "boxes_xywh", "area", "crowd"):
            np.testing.assert_array_equal(getattr(ours, column), getattr(careful, column))
        if segmentations:
            for a in range(len(careful)):
                assert ours.encoding(a) == careful.encoding(a)
    assert typed > 20
