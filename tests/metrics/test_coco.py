"""Mask AP against pycocotools called directly; boxes are in test_evaluate."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_fast.metrics import coco_detections, coco_evaluation, coco_metrics
from detr_fast.metrics.coco import encode_mask
from tests.data.make import annotation, image, write_json
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON


def true_masks(truth: COCO, image_id: int) -> tuple[torch.Tensor, list[int]]:
    annotations = truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
    image = truth.loadImgs(image_id)[0]
    masks = torch.zeros(len(annotations), image["height"], image["width"], dtype=torch.bool)
    for mask, row in zip(masks, annotations, strict=True):
        mask.copy_(torch.from_numpy(truth.annToMask(row)))
    return masks, [row["category_id"] for row in annotations]


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
@pytest.mark.parametrize("shift", [0, 3])
def test_numbers_are_those_of_pycocotools(tmp_path: Path, rng: torch.Generator, shift: int) -> None:
    assert COCO_SAMPLE is not None
    file = COCO_SAMPLE / "annotations" / "instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
    detections = []
    for image_id in truth.getImgIds():
        masks, categories = true_masks(truth, image_id)
        result = {
            "scores": torch.rand(len(masks), generator=rng),
            "labels": torch.tensor(categories, dtype=torch.int64),
            "masks": masks.roll(shift, dims=2),
            "boxes": torch.zeros(len(masks), 4),
        }
        detections += coco_detections(image_id, result, {c: c for c in truth.getCatIds()})
    metrics = coco_metrics(file, json.loads(json.dumps(detections)), kind="segm")
    if not shift:
        assert metrics["AP"] == metrics["AP50"] == pytest.approx(1)
    with contextlib.redirect_stdout(io.StringIO()):
        # with boxes among them, pycocotools would take areas from the boxes
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in detections]
        evaluation = COCOeval(truth, truth.loadRes(rows), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(metrics.values()) == pytest.approx(evaluation.stats.tolist())
    assert set(coco_metrics(file, [], kind="segm").values()) <= {0.0, -1.0}


def test_masks_as_run_lengths(rng: torch.Generator) -> None:
    mask = torch.rand(5, 7, generator=rng) < 0.5
    encoded = encode_mask(mask)
    assert encoded["size"] == [5, 7]
    assert torch.equal(torch.from_numpy(rle.decode(encoded)).bool(), mask)
    with pytest.raises(ValueError, match=r"mask: expected \[h, w\]; got \[1, 5, 7\]"):
        encode_mask(mask[None])


def test_masks_as_pycocotools_encodes_them(tmp_path: Path, rng: torch.Generator) -> None:
    """With bytes, and sizes as tuples."""
    mask = np.asfortranarray((torch.rand(20, 30, generator=rng) < 0.5).numpy().astype(np.uint8))
    truth = rle.encode(mask)
    common = {"image_id": 1, "category_id": 3}
    row = {**common, "bbox": rle.toBbox(truth).tolist(), "segmentation": encode_mask(torch.from_numpy(mask))}
    path = write_json(tmp_path / "a.json", [image(1, 30, 20)], [row])
    for size in (truth["size"], tuple(truth["size"])):
        detection = {**common, "segmentation": {"size": size, "counts": truth["counts"]}, "score": 0.5}
        assert coco_metrics(path, [detection], kind="segm")["AP"] == pytest.approx(1)


def test_what_is_compared_must_be_there(tmp_path: Path) -> None:
    box = {"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 3.0, 3.0], "score": 0.5}
    with pytest.raises(ValueError, match=r"detections\[0\]: expected 'segmentation' for kind='segm'"):
        coco_metrics(tmp_path / "unread.json", [box], kind="segm")
    with pytest.raises(ValueError, match="kind: expected 'bbox' or 'segm'; got 'keypoints'"):
        coco_metrics(tmp_path / "unread.json", [box], kind="keypoints")  # type: ignore[arg-type]


def odd_numbers(rng: torch.Generator, tmp_path: Path, kind: str) -> tuple[Path, list[dict[str, Any]]]:
    """Crowds, empty images, equal scores, boxes beyond the image, ids with gaps, over 100 detections."""
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
    images = [image(i, 60, 40) for i in (0, 5, 6, 900)]
    categories = [{"id": i, "name": name} for i, name in ((0, "a"), (3, "b"), (7, "b"), (90, ""))]

    def box() -> list[float]:
        return [*(random.random(2) * (50, 30) - 3).tolist(), *(random.random(2) * 30).tolist()]

    annotations, detections = [], []
    for i in (0, 5, 900):
        for _ in range(random.integers(0, 8)):
            x, y, w, h = xywh = box()
            category = int(random.choice([0, 3, 7]))
            outline = [[x, y, x + w, y, x + w, y + h]]
            row = {
                "id": len(annotations),
                "image_id": i,
                "category_id": category,
                "bbox": xywh,
                "area": w * h,
            }
            annotations.append({**row, "iscrowd": int(random.random() < 0.2), "segmentation": outline})
        for _ in range(random.integers(0, 130)):
            near = annotations[int(random.integers(len(annotations)))] if annotations else None
            x, y, w, h = near["bbox"] if near and random.random() < 0.7 else box()
            w, h = max(w + random.normal(), 0.5), max(h + random.normal(), 0.5)
            category = near["category_id"] if near and random.random() < 0.8 else int(random.choice([0, 90]))
            row = {"image_id": i, "category_id": category, "score": round(float(random.random()), 1)}
            shape = (
                {"bbox": [x, y, w, h]} if kind == "bbox" else {"segmentation": [[x, y, x + w, y, x, y + h]]}
            )
            detections.append({**row, **shape})
    return write_json(tmp_path / "odd.json", images, annotations, categories), detections


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_evaluators_give_the_same_numbers(tmp_path: Path, rng: torch.Generator, kind: Any) -> None:
    for attempt in range(5):
        file, detections = odd_numbers(rng, tmp_path / str(attempt), kind)
        fast = coco_evaluation(file, detections, kind=kind, evaluator="hotcoco")
        slow = coco_evaluation(file, detections, kind=kind, evaluator="pycocotools")
        assert fast.metrics == slow.metrics
        np.testing.assert_array_equal(fast.precision, slow.precision)
        assert fast.by_category() == slow.by_category()
        assert fast.categories == slow.categories
        assert slow.confusion is None
        assert fast.confusion is not None
        assert fast.confusion.shape == (5, 5)
    with pytest.raises(
        ValueError, match="evaluator: expected one of auto, hotcoco, pycocotools; got 'cocoeval'"
    ):
        coco_metrics(file, [], evaluator="cocoeval")  # type: ignore[arg-type]


def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", [image(1)], [annotation(1, 1, [1.0, 1.0, 20.0, 20.0])])
    detection = {"image_id": 1, "category_id": 3, "bbox": [1.0, 1.0, 20.0, 20.0], "score": 0.5}
    numbers = coco_metrics(file, [detection], evaluator="hotcoco")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(coco_metrics, (file, [detection])).get(60) == numbers
        with pytest.raises(RuntimeError, match="evaluator: hotcoco ran before this process was forked"):
            pool.apply_async(coco_metrics, (file, [detection], None, "bbox", "hotcoco")).get(60)


def test_without_hotcoco_pycocotools_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_fast.metrics.coco.find_spec", lambda name: None)
    truth = annotation(1, 1, [1.0, 1.0, 20.0, 20.0])
    file = write_json(tmp_path / "a.json", [image(1)], [truth])
    detection = {"image_id": 1, "category_id": 3, "bbox": [1.0, 1.0, 20.0, 20.0], "score": 0.5}
    found = coco_evaluation(file, [detection])
    assert found.metrics["AP"] == pytest.approx(1.0)
    assert found.confusion is None
    assert found.by_category() == {3: pytest.approx((1.0, 1.0))}
