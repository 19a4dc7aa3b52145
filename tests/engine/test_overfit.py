"""DETR-R18 learns real images by heart: the whole chain from JPEG files to COCO's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detr_fast import DETR
from detr_fast.data import CocoDetection
from detr_fast.data.transforms import EvalTransform
from detr_fast.engine import TrainConfig, Trainer, dataset_detector, evaluate, model_config
from detr_fast.engine.criteria import detr_criterion
from detr_fast.engine.logs import read_log
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON


@pytest.mark.slow
@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
def test_detr_r18_overfits_the_sample(tmp_path: Path) -> None:
    assert COCO_SAMPLE is not None
    images = CocoDetection(
        COCO_SAMPLE / "train2017",
        COCO_SAMPLE / "annotations" / "instances_train2017.json",
        EvalTransform(96, 160),  # small and without augmentation, to be done in minutes
    )
    config = TrainConfig(
        epochs=240,
        batch_size=len(images),
        lr=5e-4,
        lr_backbone=2e-4,
        lr_drop=210,
        warmup_steps=20,
        clip_max_norm=1.0,
        num_workers=0,
        log_every=5,
        device="cpu",
    )
    torch.manual_seed(0)
    model = DETR(
        model_config(
            "detr-r18",
            num_classes=images.num_classes,
            num_queries=25,
            hidden_dim=128,
            dim_feedforward=256,
            enc_layers=2,
            dec_layers=3,
            dropout=0.0,
            pre_norm=True,
        )
    )
    detector = dataset_detector(model, images, "detr", "detection", 96, 160)
    before = evaluate(detector, images)
    Trainer(model, detr_criterion(model.config), images, config, tmp_path).fit()
    after = evaluate(detector, images)
    # means of five steps
    losses = [record["loss"] for record in read_log(tmp_path, "train")]
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, AP50 {before['AP50']:.3f} to {after['AP50']:.3f}")
    assert before["AP50"] < 0.01
    # 0.13 to 0.33, by the order of sums that the number of threads makes
    assert after["AP50"] > 0.05, after
    assert losses[-1] < losses[0] / 4, (losses[0], losses[-1])
