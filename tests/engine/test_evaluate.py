"""The twelve numbers against pycocotools called directly, and where there is nothing to count."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from detr_fast.data import CocoDetection
from detr_fast.data.transforms import EvalTransform
from detr_fast.engine import coco_metrics, evaluate, format_metrics
from detr_fast.metrics import coco_detections
from detr_fast.structures import PaddedImages, Predictions
from tests.engine.tiny import SIZE, dataset, detector_of, write_data
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"), val_images=6)


class Oracle(nn.Module):
    """Predicts what it is told, image after image."""

    def __init__(self, targets: list[dict], num_classes: int, queries: int = 8) -> None:
        super().__init__()
        self.targets = iter(targets)
        self.num_classes, self.queries = num_classes, queries
        self.anchor = nn.Parameter(torch.zeros(()))  # tells the device

    def forward(self, images: PaddedImages) -> Predictions:
        logits = torch.zeros(1, len(images), self.queries, self.num_classes + 1)
        logits[..., -1] = 9.0
        boxes = torch.full((1, len(images), self.queries, 4), 0.5)
        for b in range(len(images)):
            target = next(self.targets)
            for q, (label, box) in enumerate(zip(target["labels"], target["boxes"], strict=True)):
                logits[0, b, q, label], logits[0, b, q, -1] = 9.0, 0.0
                boxes[0, b, q] = box
        return Predictions(logits, boxes)


@pytest.mark.parametrize("contiguous_labels", [False, True])
def test_ground_truth_scores_one(data: Path, contiguous_labels: bool) -> None:
    images = CocoDetection(
        data / "val2017",
        data / "annotations" / "instances_val2017.json",
        EvalTransform(SIZE, SIZE),
        contiguous_labels=contiguous_labels,
    )
    oracle = Oracle([images[i][1] for i in range(len(images))], images.num_classes)
    metrics = evaluate(detector_of(oracle.train(), images), images, batch_size=4)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == pytest.approx(1.0)
    assert oracle.training, "left in the mode it was in"


def test_numbers_and_table_are_those_of_pycocotools(data: Path, rng: torch.Generator) -> None:
    annotations = data / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    detections = []
    for truth in content["annotations"]:
        noise = torch.randn(4, generator=rng) * 2
        box = [max(v + float(n), 1.0) for v, n in zip(truth["bbox"], noise, strict=True)]
        score = float(torch.rand((), generator=rng))
        found = {"image_id": truth["image_id"], "category_id": truth["category_id"]}
        detections.append({**found, "bbox": box, "score": score})
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = coco_metrics(annotations, detections)
    assert list(metrics.values()) == pytest.approx(evaluation.stats.tolist())
    assert format_metrics(metrics).splitlines() == text.getvalue().splitlines()[-12:]


def test_nothing_detected_scores_zero(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = coco_metrics(data / "annotations" / "instances_val2017.json", [])
    assert metrics["AP"] == metrics["AR100"] == 0
    # images of 32 pixels hold no object that COCO calls large
    assert metrics["APl"] == -1
    assert capsys.readouterr().out == ""


def test_no_ground_truth_scores_minus_one(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(content))
    box = {"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 3.0, 3.0], "score": 0.5}
    assert set(coco_metrics(path, [box]).values()) == set(coco_metrics(path, []).values()) == {-1.0}


def test_labels_without_category_are_left_out() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    result = {"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([12, 1]), "boxes": boxes}
    assert coco_detections(5, result, {1: 1}) == [
        {"image_id": 5, "category_id": 1, "bbox": [1.0, 1.0, 1.0, 1.0], "score": pytest.approx(0.8)}
    ]


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
def test_real_images_with_crowds() -> None:
    assert COCO_SAMPLE is not None
    images = CocoDetection(
        COCO_SAMPLE / "val2017",
        COCO_SAMPLE / "annotations" / "instances_val2017.json",
        EvalTransform(64, 107),
    )
    oracle = Oracle([images[i][1] for i in range(len(images))], images.num_classes, queries=100)
    metrics = evaluate(detector_of(oracle, images), images, batch_size=3)
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP"] > 0.99


def test_model_sees_the_images(data: Path) -> None:
    seen = []

    class Recorder(Oracle):
        def forward(self, images: PaddedImages) -> Predictions:
            seen.append(images.tensors.shape)
            return super().forward(images)

    images = dataset(data, "val", train=False)
    recorder = Recorder([images[i][1] for i in range(6)], images.num_classes)
    evaluate(detector_of(recorder, images), images, batch_size=4)
    assert [tuple(shape) for shape in seen] == [(4, 3, SIZE, SIZE), (2, 3, SIZE, SIZE)]
