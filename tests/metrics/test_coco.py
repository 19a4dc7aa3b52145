"""Mask AP against pycocotools called directly; boxes are in test_evaluate."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_fast.metrics import coco_detections, coco_metrics
from detr_fast.metrics.coco import encode_mask
from tests.data.make import image, write_json
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON


def true_masks(truth: COCO, image_id: int) -> tuple[torch.Tensor, list[int]]:
    annotations = truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
    image = truth.loadImgs(image_id)[0]
    masks = torch.zeros(len(annotations), image["height"], image["width"], dtype=torch.bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        mask.copy_(torch.from_numpy(truth.annToMask(annotation)))
    return masks, [annotation["category_id"] for annotation in annotations]


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
