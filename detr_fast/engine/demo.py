"""The main job in small: models learn to find drawn shapes, and the operators show their speed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from detr_fast.bench import run_benchmarks, why_not
from detr_fast.data import CocoPanoptic, ImageDataset, write_shapes_dataset
from detr_fast.data.transforms import TrainTransform
from detr_fast.drawing.boxes import draw_detections
from detr_fast.drawing.masks import draw_panoptic
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.detector import Detector
from detr_fast.engine.evaluate import evaluate
from detr_fast.engine.logs import read_log
from detr_fast.engine.predict import predict_image
from detr_fast.engine.recipe import dataset_detector, evaluator
from detr_fast.engine.report import Learnt, picture_grid, plot_losses, write_report
from detr_fast.engine.train import Trainer
from detr_fast.families import FAMILIES, model_config
from detr_fast.families.dino import dino_criterion
from detr_fast.families.mask2former import mask2former_criterion
from detr_fast.tasks import build_dataset

IMAGE_SIZE = 64
TRAIN_IMAGES, VAL_IMAGES = 2048, 256
PICTURES, ENLARGED = 12, 4
SEED = 0
TRAINING = TrainConfig(
    batch_size=16,
    lr=5e-4,
    lr_backbone=5e-4,
    clip_max_norm=1.0,
    seed=SEED,
    num_workers=0,
    device="cpu",
)


@dataclass(frozen=True)
class Part:
    """A model of the demo; with few objects and queries in small images it learns in minutes on two cores.

    Args:
        about: what it shows.
        criterion: from the model's configuration.
        losses: the loss terms to plot, with their titles.
        scores: the numbers to plot.
    """

    title: str
    about: str
    family: str
    task: str
    training: TrainConfig
    criterion: Callable[[Any], nn.Module]
    losses: Mapping[str, str]
    scores: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.family}-{self.task}"


PARTS = (
    Part(
        title="DINO: boxes",
        about="Average precision of boxes",
        family="dino",
        task="detection",
        training=dataclasses.replace(TRAINING, epochs=8, lr_drop=6, warmup_steps=100, ema=0.998),
        criterion=dino_criterion,
        losses={"loss_ce": "class", "loss_bbox": "box L1", "loss_giou": "1 - GIoU"},
        scores=("AP50", "AP"),
    ),
    Part(
        title="Mask2Former: panoptic segmentation",
        about="Panoptic quality of shapes (things) and background (stuff)",
        family="mask2former",
        task="panoptic",
        training=dataclasses.replace(TRAINING, epochs=3, lr_drop=2, warmup_steps=50, ema=0.99),
        # masks have 32 x 32 pixels
        criterion=partial(mask2former_criterion, num_points=256),
        losses={"loss_ce": "class", "loss_mask": "mask cross-entropy", "loss_dice": "mask dice"},
        scores=("PQ", "PQ_th", "PQ_st"),
    ),
)


def run_demo(output: Path, echo: Callable[[str], None] = print) -> dict[str, float]:
    """Writes data, trains, evaluates, draws and times; leaves a report in `output`.

    `output` gets `report.md`, `metrics.json`, pictures of losses, predictions and attention of each model,
    `bench.json`, the data set, the runs with their checkpoints and TensorBoard events, and loses those of an
    earlier run.

    Returns:
        What `metrics.json` holds: the last numbers of each model, the same with `_untrained`, `seconds`.
    """
    started = time.perf_counter()
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
    learnt = [_learn(part, root, output, echo) for part in PARTS]
    rows = _time_operators(output / "bench.json", echo)
    summary = {"seconds": time.perf_counter() - started}
    for one in learnt:
        summary.update(one.trained)
        summary.update({f"{name}_untrained": value for name, value in one.untrained.items()})
    (output / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_report(output / "report.md", learnt, rows, summary["seconds"])
    echo(f"report: {output / 'report.md'} ({summary['seconds']:.0f} s)")
    return summary


def _time_operators(path: Path, echo: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of the quick benchmark, whose report is written to `path`; none outside a clone."""
    path.unlink(missing_ok=True)
    if reason := why_not():
        echo(f"operators are not timed: {reason}")
    else:
        run_benchmarks(["--quick", "--device", "cpu", "--json", str(path)])
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def _learn(part: Part, root: Path, output: Path, echo: Callable[[str], None]) -> Learnt:
    """Trains and evaluates one model and draws what it finds."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    train, val = (_dataset(part, root, split) for split in ("train", "val"))
    # The official random crop would cut most shapes of a small image: this one takes it whole.
    whole = (IMAGE_SIZE, IMAGE_SIZE)
    train.transforms = TrainTransform((IMAGE_SIZE,), IMAGE_SIZE, crop_scales=(IMAGE_SIZE,), crop_size=whole)
    config = model_config(f"{part.family}-demo", num_classes=train.num_classes)
    model = FAMILIES[part.family].model(config)
    detector = dataset_detector(model, train, part.family, part.task, IMAGE_SIZE, IMAGE_SIZE)
    run = output / part.name
    # TensorBoard shows all event files of a folder as one run.
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    trainer = Trainer(
        model,
        part.criterion(config),
        train,
        part.training,
        run,
        description=detector.description(),
        evaluate=evaluator(detector, val, part.training),
        best_metric=detector.task.best_metric,
        parameter_groups=FAMILIES[part.family].parameter_groups,
    )
    untrained = evaluate(detector, val, batch_size=part.training.batch_size)
    trained = trainer.fit()
    detector = dataclasses.replace(detector, model=trainer.evaluated_model)
    losses = output / f"{part.name}-losses.png"
    evaluations = [{"step": 0, **untrained}, *read_log(run, "eval")]
    plot_losses(read_log(run, "train"), evaluations, part.losses, part.scores, losses)
    val.transforms = None
    pairs = [_picture(detector, val, index) for index in range(PICTURES)]
    picture_grid(pairs).save(output / f"{part.name}.png")
    image = val[0][0]
    best = predict_image(detector, image, shown=_enlarged(image))
    attention = detector.attention(best, most=3, image=image)
    if attention is not None:
        attention.save(output / f"{part.name}-attention.png")
    seconds = time.perf_counter() - started
    score = detector.task.best_metric
    echo(
        f"{part.title}: {score} {untrained[score]:.3f} untrained, {trained[score]:.3f} after {seconds:.0f} s"
    )
    steps, found = trainer.progress.step, attention is not None
    return Learnt(part.title, part.about, part.name, untrained, trained, steps, seconds, found)


def _dataset(part: Part, root: Path, split: str) -> ImageDataset:
    return build_dataset(
        root,
        split,  # type: ignore[arg-type]
        part.task,
        train=False,
        masks=FAMILIES[part.family].masks,
        contiguous_labels=FAMILIES[part.family].contiguous_labels,
        scales=(IMAGE_SIZE,),
        max_size=IMAGE_SIZE,
        seed=SEED,
    )


def _picture(detector: Detector, dataset: ImageDataset, index: int) -> tuple[Image.Image, Image.Image]:
    """An image with its ground truth and with what the detector finds, enlarged before drawing."""
    image, target = dataset[index]
    large = _enlarged(image)
    if isinstance(dataset, CocoPanoptic):
        ids, segments = dataset.panoptic_truth(index)
        for axis in (0, 1):
            ids = ids.repeat_interleave(ENLARGED, axis)
        named = [{**segment, "caption": dataset.category_names[segment["label"]]} for segment in segments]
        truth = draw_panoptic(large, ids, named)
    else:
        labels = target["labels"].tolist()
        names = [dataset.category_names[label] for label in labels]
        truth = draw_detections(large, (target["boxes"] * ENLARGED).tolist(), labels, names)
    return truth, predict_image(detector, image, shown=large).draw()


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.BICUBIC)
