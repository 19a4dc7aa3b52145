"""A data set and a model small enough to train in a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_fast import DETR, DETRConfig
from detr_fast.data import CocoDetection, build_detection_dataset, write_shapes_dataset
from detr_fast.engine import Detector, TrainConfig, Trainer, dataset_detector
from detr_fast.families.detr import detr_criterion

SIZE = 32
CONFIG = TrainConfig(
    epochs=2, batch_size=2, lr=1e-3, lr_backbone=1e-3, lr_drop=1, num_workers=0, log_every=1, device="cpu"
)


def write_data(root: Path, train_images: int = 12, val_images: int = 4) -> Path:
    return write_shapes_dataset(
        root, train_images=train_images, val_images=val_images, image_size=SIZE, max_objects=3
    )


def dataset(root: Path, split: str = "train", *, train: bool = True) -> CocoDetection:
    return build_detection_dataset(root, split, train=train, scales=(SIZE,), max_size=2 * SIZE)  # type: ignore[arg-type]


def detr(num_classes: int = 8, dropout: float = 0.1, **sizes: Any) -> DETR:
    torch.manual_seed(0)
    small = {"hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 32}
    config = DETRConfig(
        backbone="conv_stem_8", num_queries=5, num_classes=num_classes, dropout=dropout, **{**small, **sizes}
    )
    return DETR(config)


def detector_of(model: nn.Module, images: CocoDetection) -> Detector:
    return dataset_detector(model, images, "detr", "detection", SIZE, 2 * SIZE)


def trainer(root: Path, output: Path, model: nn.Module | None = None, **options: Any) -> Trainer:
    """Options that TrainConfig knows change the configuration, others go to the Trainer."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {key: options.pop(key) for key in options.keys() & names}
    images = dataset(root)
    model = model or detr(images.num_classes)
    assert isinstance(model, DETR)
    detector = detector_of(model, images)
    return Trainer(
        model,
        detr_criterion(model.config),
        images,
        dataclasses.replace(CONFIG, **settings),
        output,
        description=detector.description(),
        **options,
    )
