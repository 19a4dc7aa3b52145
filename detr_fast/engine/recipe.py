"""Training on a COCO-format data set, from scratch or from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_fast.data import DataSource, ImageDataset, LargeScaleJitter
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.distributed import is_main
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.detector import Detector
from detr_fast.engine.evaluate import evaluate
from detr_fast.engine.introduction import introduction
from detr_fast.engine.model_choice import StartingPoint
from detr_fast.engine.outputs import check_not_inputs
from detr_fast.engine.resuming import source_record
from detr_fast.engine.train import Trainer
from detr_fast.families import FAMILIES
from detr_fast.tasks import build_dataset


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of training and evaluation images, pixels.

    Args:
        scales: short sides, the last for evaluation.
        max_size: bound of the long side.
        canvas: side of the square that large-scale jitter fills; None for DETR's augmentation.
    """

    scales: tuple[int, ...]
    max_size: int
    canvas: int | None = None

    @classmethod
    def of(cls, image_size: int | None, augmentation: str, short_side: int = SCALES[-1]) -> ImageSizes:
        """The official sizes, or all of them in proportion to `image_size`, else to `short_side`.

        "detr": its largest short side, officially 800 (the others begin at 480, the long side ends at 1333).
        "lsj": its canvas, officially 1024, raised to a multiple of 32; evaluation at 800 as well.
        """
        official = {"detr": SCALES[-1], "lsj": LargeScaleJitter.size}
        if augmentation not in official:
            raise ValueError(f"augmentation: expected 'detr' or 'lsj'; got {augmentation!r}")
        ratio = short_side / SCALES[-1] if image_size is None else image_size / official[augmentation]
        canvas = -(-round(ratio * official["lsj"]) // 32) * 32 if augmentation == "lsj" else None
        return cls(tuple(round(scale * ratio) for scale in SCALES), round(MAX_SIZE * ratio), canvas)


def train_on_coco(
    data: Path | DataSource,
    output: Path,
    config: TrainConfig,
    start: StartingPoint,
    *,
    image_size: int | None = None,
    augmentation: str | None = None,
    resume: bool = False,
    skip_bad_images: bool = False,
    evaluate_val: bool = True,
    echo: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains a model on a data set on disk; what `detr-fast train` does.

    Args:
        data: the data set's folder, or more about it.
        output: the run's folder. One that holds a run already is only gone on with (`resume`).
        config: how to train.
        start: what to train.
        image_size: see `ImageSizes.of`; by default what suits the model.
        augmentation: "detr": random short sides and crops; "lsj": large-scale jitter. Default: the family's.
        resume: go on from `output/last.pt`.
        skip_bad_images: log unreadable training images and go on, instead of stopping.
        evaluate_val: evaluate on the val split, as `config.eval_every` says.
        echo: told what a person should know.

    Returns:
        The last evaluation's numbers; empty without one.
    """
    last = output / "last.pt"
    if last.exists() and not resume:
        raise ValueError(f"{output}: holds a run already; resume it, or choose another output folder")
    choice, family = start.choice, FAMILIES[start.family]
    if not resume:
        sources = (choice.weights, choice.backbone_weights, choice.frozen_weights)
        check_not_inputs([last, output / "best.pt"], [path for path in sources if path is not None])
    augmentation = augmentation or family.augmentation
    sizes = ImageSizes.of(image_size, augmentation, start.image_size)
    # None: where the category ids would make most labels stand for nothing.
    contiguous_labels = start.contiguous_labels or (None if choice.num_classes is None else False)
    options: dict[str, Any] = {
        "task": start.task,
        "scales": sizes.scales,
        "max_size": sizes.max_size,
        "seed": config.seed,
    }
    train_options: dict[str, Any] = {
        "train": True,
        "masks": family.masks,
        "num_classes": choice.num_classes,
        "augmentation": augmentation,
        "lsj_size": sizes.canvas or LargeScaleJitter.size,
        "on_bad_image": "skip" if skip_bad_images else "raise",
    }
    dataset = build_dataset(data, "train", contiguous_labels=contiguous_labels, **options, **train_options)
    held_out = None
    if evaluate_val:
        source = dataclasses.replace(DataSource.of(data), exif=dataset.exif)  # one convention for both
        held_out = build_dataset(source, "val", train=False, masks=False, contiguous_labels=True, **options)
    if is_main():
        for split, about in (("train", dataset), ("val", held_out)):
            for remark in () if about is None else about.remarks:
                echo(f"{split}: {remark}")
    if dataset.num_objects == 0:
        raise ValueError(f"{dataset.annotation_file}: nothing to learn from: {'; '.join(dataset.remarks)}")
    torch.manual_seed(config.seed)
    model, remarks = start.build(dataset.num_classes)
    if is_main():
        for remark in remarks:
            echo(remark)
    detector = dataset_detector(model, dataset, start.family, start.task, sizes.scales[-1], sizes.max_size)
    if held_out is not None:  # other categories are refused now, not after an epoch
        detector.task.scorer(held_out, detector.categories)
    trainer = Trainer(
        model,
        family.criterion(detector.config),
        dataset,
        config,
        output,
        description=detector.description(),
        evaluate=None if held_out is None else evaluator(detector, held_out, config),
        best_metric=detector.task.best_metric,
        parameter_groups=family.parameter_groups,
        batch_shape=None if sizes.canvas is None else (sizes.canvas, sizes.canvas),
        options={
            "augmentation": augmentation,
            "image_size": image_size,
            **dataclasses.asdict(sizes),
            "masks": family.masks,
            "skip_bad_images": skip_bad_images,
            "num_classes": choice.num_classes,
        },
        source={**source_record(DataSource.of(data)), "evaluated": evaluate_val},
        resume=last if resume else None,
    )
    if is_main():
        for line in introduction(trainer, detector):
            echo(line)
        if trainer.progress.epoch >= config.epochs:
            echo(f"nothing left to do: all {config.epochs} epochs are done; for more, say so (--epochs)")
    return trainer.fit()


def evaluation_dataset(
    detector: Detector, data: Path | DataSource, split: str, image_size: int | None = None
) -> ImageDataset:
    """What `detr-fast eval` evaluates on; `image_size`: the images' short side, by default as trained."""
    largest, num_classes = max(detector.categories, default=-1), detector.config.num_classes
    if largest >= num_classes:
        raise ValueError(f"checkpoint: names a class {largest}, but its num_classes = {num_classes}")
    scale, max_size = detector.image_size, detector.max_size
    if image_size is not None:
        sizes = ImageSizes.of(image_size, "detr")
        scale, max_size = sizes.scales[-1], sizes.max_size
    return build_dataset(
        data,
        split,  # type: ignore[arg-type]
        detector.task_name,
        train=False,
        masks=False,
        contiguous_labels=True,  # the scorer finds the model's
        scales=(scale,),
        max_size=max_size,
    )


def dataset_detector(
    model: nn.Module, dataset: ImageDataset, family: str, task: str, image_size: int, max_size: int
) -> Detector:
    """A detector of the data set's categories."""
    categories = {
        label: (category, dataset.category_names[label])
        for label, category in dataset.label_to_category.items()
    }
    things = frozenset(dataset.things) if task == "panoptic" else None
    return Detector(model, categories, image_size, max_size, family, task, things)


def evaluator(
    detector: Detector, dataset: ImageDataset, config: TrainConfig
) -> Callable[[nn.Module], dict[str, float]]:
    """What a `Trainer` calls to evaluate on `dataset`: the detector with the model that it gives."""

    def numbers(model: nn.Module) -> dict[str, float]:
        return evaluate(
            dataclasses.replace(detector, model=model),
            dataset,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            amp=config.amp,
        )

    return numbers
