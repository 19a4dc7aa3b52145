"""Models learn real images by heart: the whole chain from JPEG and PNG files to COCO's numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_fast.data import ImageDataset
from detr_fast.engine import FAMILIES, TrainConfig, Trainer, dataset_detector, evaluate, model_config
from detr_fast.engine.logs import read_log
from detr_fast.families.mask2former import mask2former_criterion
from detr_fast.tasks import build_dataset
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of epochs of a few images: each is read once, and no checkpoints are written."""
    read = ImageDataset.__getitem__
    monkeypatch.setattr(ImageDataset, "__getitem__", cache(read))
    monkeypatch.setattr(Trainer, "save", lambda trainer, name: None)


def sample(task: str, size: int, contiguous_labels: bool) -> ImageDataset:
    """The training images, small and without augmentation, to be done in minutes."""
    assert COCO_SAMPLE is not None
    return build_dataset(
        COCO_SAMPLE,
        "train",
        task,
        train=False,
        scales=(size,),
        max_size=size * 5 // 3,
        contiguous_labels=contiguous_labels,
    )


def learn(
    model: str,
    task: str,
    size: int,
    output: Path,
    sizes: dict[str, Any],
    criterion: Any = None,
    **training: Any,
) -> tuple[dict[str, float], dict[str, float], float, float]:
    """The numbers before and after training, and the loss of its first and last few steps."""
    name = model.rsplit("-", 1)[0]
    family = FAMILIES[name]
    images = sample(task, size, family.contiguous_labels)
    settings = {"warmup_steps": 20, "clip_max_norm": 1.0, "num_workers": 0, "log_every": 5, "device": "cpu"}
    config = TrainConfig(**{**settings, **training})
    torch.manual_seed(0)
    network = family.model(model_config(model, num_classes=images.num_classes, **sizes))
    detector = dataset_detector(network, images, name, task, size, size * 5 // 3)
    before = evaluate(detector, images)
    trainer = Trainer(
        network,
        (criterion or family.criterion)(detector.config),
        images,
        config,
        output,
        parameter_groups=family.parameter_groups,
    )
    trainer.fit()
    after = evaluate(detector, images)
    losses = [record["loss"] for record in read_log(output, "train")]
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, {before} to {after}")
    return before, after, losses[0], losses[-1]


def test_detr_r18_overfits_the_sample(tmp_path: Path) -> None:
    before, after, first, last = learn(
        "detr-r18",
        "detection",
        96,
        tmp_path,
        {"num_queries": 25, "hidden_dim": 128, "dim_feedforward": 256, "enc_layers": 2, "dec_layers": 3,
         "dropout": 0.0, "pre_norm": True},
        epochs=240,
        batch_size=13,
        lr=5e-4,
        lr_backbone=2e-4,
        lr_drop=210,
    )  # fmt: skip
    assert before["AP50"] < 0.01
    # 0.13 to 0.33, by the order of sums that the number of threads makes
    assert after["AP50"] > 0.05, after
    assert last < first / 4, (first, last)


def test_deformable_detr_overfits_the_sample(tmp_path: Path) -> None:
    before, after, first, last = learn(
        "deformable-detr-tiny",
        "detection",
        96,
        tmp_path,
        {"backbone": "resnet18", "num_feature_levels": 4, "num_queries": 20},
        epochs=75,
        batch_size=13,
        lr=1e-3,
        lr_backbone=1e-3,
        lr_drop=62,
    )
    assert before["AP"] < 0.01
    assert after["AP"] > 0.15, after
    assert last < first / 3, (first, last)


def test_dino_overfits_the_sample(tmp_path: Path) -> None:
    before, after, first, last = learn(
        "dino-tiny",
        "detection",
        96,
        tmp_path,
        {"backbone": "resnet18", "num_feature_levels": 4, "num_queries": 100},
        epochs=60,
        batch_size=13,
        lr=1e-3,
        lr_backbone=1e-3,
        lr_drop=50,
    )
    assert before["AP"] < 0.01
    assert after["AP"] > 0.07, after
    assert last < first / 2, (first, last)


def test_mask2former_overfits_the_sample(tmp_path: Path) -> None:
    before, after, first, last = learn(
        "mask2former-demo",
        "panoptic",
        64,
        tmp_path,
        {"num_queries": 30},
        lambda config: mask2former_criterion(config, num_points=256),
        epochs=80,
        batch_size=3,
        lr=7e-4,
        lr_backbone=7e-4,
        lr_drop=64,
    )
    assert before["PQ"] < 0.01
    assert after["PQ"] > 0.2, after
    assert last < first / 3, (first, last)
