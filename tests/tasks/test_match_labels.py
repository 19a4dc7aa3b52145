"""What the labels of a model mean to the data that it is evaluated on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data import CocoDetection, CocoPanoptic, SemanticMaps
from detr_fast.tasks import TASKS
from detr_fast.tasks.task import match_labels
from tests.data.make import annotation, image, segment, write_json, write_panoptic

MODEL = {0: (1, "car"), 1: (2, "traffic light"), 2: (3, "bus")}


def data(folder: Path, categories: dict[int, str], used: list[int], **options: Any) -> CocoDetection:
    rows = [annotation(i, 1, [i, i, 9, 9], category) for i, category in enumerate(used)]
    entries = [{"id": key, "name": name} for key, name in categories.items()]
    return CocoDetection(folder, write_json(folder / "a.json", [image(1)], rows, entries), **options)


@pytest.mark.parametrize(
    ("categories", "used", "expected"),
    [
        ({1: "car", 2: "traffic light", 3: "bus"}, [1, 2, 3], {0: 1, 1: 2, 2: 3}),
        ({5: "bus", 6: "car"}, [5, 6], {2: 5, 0: 6}),
        ({1: "bus", 3: "car"}, [1, 3], {2: 1, 0: 3}),
        ({7: "Traffic_Light", 8: "tram"}, [7], {1: 7}),
        ({1: "car", 4: "car"}, [1], {0: 1}),
        ({4: "tram"}, [], {}),
    ],
)
def test_ids_and_names(
    tmp_path: Path, categories: dict[int, str], used: list[int], expected: dict[int, int]
) -> None:
    assert match_labels(data(tmp_path, categories, used), MODEL) == expected
    contiguous = data(tmp_path, categories, used, contiguous_labels=True)
    labels = match_labels(contiguous, MODEL)
    assert {ours: contiguous.label_to_category[label] for ours, label in labels.items()} == expected


@pytest.mark.parametrize(
    ("categories", "used", "message"),
    [
        ({5: "cat", 6: "dog"}, [5, 6], r"2 of its categories are none of the model's: 5 \(cat\), 6 \(dog\)"),
        ({1: "car", 2: "dog"}, [1, 2], r"1 of its categories .*: 2 \(dog\); the model has 1 \(car\), 2 \(tr"),
        ({4: "car", 5: "car"}, [5], r"none of the model's: 5 \(car\)"),
    ],
)
def test_other_categories_are_refused(
    tmp_path: Path, categories: dict[int, str], used: list[int], message: str
) -> None:
    for task in ("detection", "instance"):
        images = data(tmp_path, categories, used)
        with pytest.raises(ValueError, match=message if task == "detection" else "segmentations"):
            TASKS[task].scorer(images, MODEL)


def test_models_without_names_go_by_the_ids(tmp_path: Path) -> None:
    nameless = {label: (label, f"class {label}") for label in range(3)}
    assert match_labels(data(tmp_path, {0: "car", 2: "bus"}, [0, 2]), nameless) == {0: 0, 2: 2}
    with pytest.raises(ValueError, match=r"none of the model's: 5 \(bus\)"):
        match_labels(data(tmp_path, {0: "car", 5: "bus"}, [0, 5]), nameless)


def test_perfect_detections_of_renumbered_categories_score_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = data(tmp_path, {5: "bus", 6: "car"}, [5, 6, 5])
    with caplog.at_level(logging.WARNING):
        scorer = TASKS["detection"].scorer(images, MODEL)
    assert "2 categories have other ids than the model's: matched by their names" in caplog.text
    boxes = torch.tensor([[i, i, i + 9, i + 9] for i in (0, 1, 2, 0)])
    # The last is of a class that the data does not have.
    scorer.add(0, {"labels": torch.tensor([2, 0, 2, 1]), "scores": torch.ones(4), "boxes": boxes})
    assert scorer.scores().metrics["AP"] == pytest.approx(1.0)


def test_perfect_segments_of_renumbered_categories_score_one(tmp_path: Path) -> None:
    ids = np.zeros((6, 8), np.int64)
    ids[:3], ids[3:] = 7, 9
    categories = [{"id": 40, "name": "bus", "isthing": 1}, {"id": 50, "name": "car", "isthing": 1}]
    write_panoptic(tmp_path, {1: ids}, {1: [segment(7, 40), segment(9, 50)]}, categories)
    images = CocoPanoptic(
        tmp_path / "train2017",
        tmp_path / "annotations" / "panoptic_train2017.json",
        tmp_path / "annotations" / "panoptic_train2017",
    )
    scorer = TASKS["panoptic"].scorer(images, MODEL)
    segments = [{"id": 1, "label": 2}, {"id": 2, "label": 0}]
    scorer.add(0, {"segmentation": torch.from_numpy(np.where(ids == 7, 1, 2)), "segments": segments})
    assert scorer.scores().metrics["PQ"] == 1

    semantic = TASKS["semantic"].scorer(images, MODEL)
    predicted = torch.from_numpy(np.where(ids == 7, 2, 0))
    semantic.add(0, {"labels": predicted})
    assert semantic.scores().metrics["mIoU"] == 1
    predicted[0, 0] = 1  # a class that the data does not have
    wrong = TASKS["semantic"].scorer(images, MODEL)
    wrong.add(0, {"labels": predicted})
    assert wrong.scores().metrics == pytest.approx(
        {"mIoU": 47 / 48, "mACC": 47 / 48, "pACC": 47 / 48, "fwIoU": 47 / 48}
    )


def test_label_maps_of_reordered_classes(tmp_path: Path) -> None:
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    pixels = np.array([[0, 1], [1, 255]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "maps" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    maps = SemanticMaps(tmp_path / "images", tmp_path / "maps", ["bus", "car"])
    scorer = TASKS["semantic"].scorer(maps, {k: (k, name) for k, (_, name) in MODEL.items()})
    scorer.add(0, {"labels": torch.tensor([[2, 0], [0, 99]])})
    assert scorer.scores().metrics["mIoU"] == 1
