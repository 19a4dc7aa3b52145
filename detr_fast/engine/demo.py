"""The main job in small: a DETR learns to find drawn shapes, and the operators show their speed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detr_fast.benchmarking import quick_plan, run_benchmarks
from detr_fast.data import CocoDetection, write_shapes_dataset
from detr_fast.data.dataset import Transform
from detr_fast.data.transforms import EvalTransform, TrainTransform
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.criteria import detr_criterion
from detr_fast.engine.detector import Detector
from detr_fast.engine.draw import draw_detections
from detr_fast.engine.evaluate import evaluate
from detr_fast.engine.logs import read_log
from detr_fast.engine.predict import detect, overlay
from detr_fast.engine.recipe import dataset_detector, evaluator
from detr_fast.engine.report import picture_grid, plot_losses, write_report
from detr_fast.engine.train import Trainer
from detr_fast.models import DETR, DETRConfig

IMAGE_SIZE = 64
TRAIN_IMAGES, VAL_IMAGES = 2048, 256
PICTURES, ENLARGED = 12, 4
SEED = 0
# A DETR that learns from nothing in minutes on two cores: few objects, few queries, small images with
# features of stride 8, and no dropout.
MODEL = {
    "backbone": "conv_stem",
    "hidden_dim": 128,
    "enc_layers": 2,
    "dec_layers": 3,
    "dim_feedforward": 256,
    "dropout": 0.0,
    "num_queries": 10,
}
# With 10 queries, not 100, "no object" is rarer than officially: a larger weight keeps the balance.
NO_OBJECT = 0.4
TRAINING = TrainConfig(
    epochs=20,
    batch_size=16,
    lr=5e-4,
    lr_backbone=5e-4,
    lr_drop=16,
    warmup_steps=100,
    clip_max_norm=1.0,
    ema=0.998,
    seed=SEED,
    num_workers=0,
    eval_every=2,
    device="cpu",
)


def run_demo(output: Path, echo: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes data, trains, evaluates, draws and times; leaves a report in `output`.

    `output` gets `report.md`, `metrics.json`, `losses.png`, `predictions.png`, `bench.json`, the data set,
    the checkpoints and TensorBoard events, and loses those of an earlier run.

    Returns:
        What `metrics.json` holds: the twelve COCO numbers, `AP_untrained`, `AP50_untrained`, `seconds`,
        `seconds_training`.
    """
    started = time.perf_counter()
    torch.manual_seed(SEED)
    root = write_shapes_dataset(
        output / "data",
        train_images=TRAIN_IMAGES,
        val_images=VAL_IMAGES,
        image_size=IMAGE_SIZE,
        seed=SEED,
        max_objects=3,
        object_sizes=(0.25, 0.6),
    )
    echo(f"{TRAIN_IMAGES} + {VAL_IMAGES} images of drawn shapes in {root}")
    # The official random crop would cut most shapes of a small image: this one takes it whole.
    whole = (IMAGE_SIZE, IMAGE_SIZE)
    flip = TrainTransform((IMAGE_SIZE,), IMAGE_SIZE, crop_scales=(IMAGE_SIZE,), crop_size=whole)
    train = _dataset(root, "train", flip)
    val = _dataset(root, "val", EvalTransform(IMAGE_SIZE, IMAGE_SIZE))

    model = DETR(DETRConfig(**MODEL, num_classes=train.num_classes))  # type: ignore[arg-type]
    detector = dataset_detector(model, train, "detr", "detection", IMAGE_SIZE, IMAGE_SIZE)
    untrained = evaluate(detector, val, batch_size=TRAINING.batch_size)
    echo(f"untrained: AP50 {untrained['AP50']:.3f}")

    # TensorBoard shows all event files of a folder as one run.
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    trainer = Trainer(
        model,
        detr_criterion(model.config, NO_OBJECT),
        train,
        TRAINING,
        output,
        description=detector.description(),
        evaluate=evaluator(detector, val, TRAINING),
    )
    training_started = time.perf_counter()
    metrics = trainer.fit()
    seconds_training = time.perf_counter() - training_started
    echo(f"trained for {seconds_training:.0f} s: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")

    detector = dataclasses.replace(detector, model=trainer.evaluated_model)
    picture_grid(list(_pictures(detector, _dataset(root, "val", None)))).save(output / "predictions.png")
    plot_losses(read_log(output, "train"), read_log(output, "eval"), output / "losses.png")

    benchmark = run_benchmarks(quick_plan(), output / "bench.json", echo=echo)
    summary = {
        **metrics,
        "AP_untrained": untrained["AP"],
        "AP50_untrained": untrained["AP50"],
        "seconds": time.perf_counter() - started,
        "seconds_training": seconds_training,
    }
    (output / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_report(output / "report.md", summary, untrained, benchmark, trainer.progress.step)
    echo(f"report: {output / 'report.md'} ({summary['seconds']:.0f} s)")
    return summary


def _dataset(root: Path, split: str, transforms: Transform | None) -> CocoDetection:
    annotations = root / "annotations" / f"instances_{split}2017.json"
    return CocoDetection(root / f"{split}2017", annotations, transforms, seed=SEED)


def _pictures(detector: Detector, dataset: CocoDetection) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Images with their ground truth and with what the detector finds, enlarged before drawing."""
    for index in range(PICTURES):
        image, target = dataset[index]
        large = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.BICUBIC)
        labels = target["labels"].tolist()
        names = [detector.categories[label][1] for label in labels]
        truth = draw_detections(large, (target["boxes"] * ENLARGED).tolist(), labels, names)
        found = detect(detector, image)
        for detection in found:
            detection["box_xyxy"] = [ENLARGED * v for v in detection["box_xyxy"]]
        yield truth, overlay(large, found)
