"""Training on a COCO-format data set, from scratch or from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_fast.checkpoints import load_state_dict
from detr_fast.data import DataSource, ImageDataset, LargeScaleJitter
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.distributed import is_main
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.detector import Detector
from detr_fast.engine.evaluate import evaluate
from detr_fast.engine.loading import load_detector
from detr_fast.engine.outputs import check_not_inputs
from detr_fast.engine.train import Trainer
from detr_fast.families import FAMILIES, check_task, family_of, model_config
from detr_fast.tasks import build_dataset

DEFAULT_MODEL = "detr-r50"


@dataclass(frozen=True)
class ModelChoice:
    """What to train.

    Args:
        name: of `MODELS`; by default the architecture of `weights`, else detr-r50.
        weights: a checkpoint to start from. Where it has other numbers of classes or queries, the first rows
            are taken.
        backbone_weights: an ImageNet file to start the backbone from.
        frozen_weights: a trained DETR that a DETR for segmentation keeps as it is and learns a mask head for.
        num_classes: by default what the data needs.
        num_queries: by default the model's.
        task: by default that of `weights`, else the family's first.
        allow_non_finite: take weights that are NaN or infinite, too.
    """

    name: str | None = None
    weights: Path | None = None
    backbone_weights: Path | None = None
    num_classes: int | None = None
    num_queries: int | None = None
    task: str | None = None
    frozen_weights: Path | None = None
    allow_non_finite: bool = False

    def starting_point(self) -> StartingPoint:
        """Reads `weights` or `frozen_weights`, where given."""
        sources = {name: getattr(self, name) for name in ("weights", "backbone_weights", "frozen_weights")}
        if len(given := [name for name, path in sources.items() if path is not None]) > 1:
            raise ValueError(f"{', '.join(given)}: expected one of them; got {len(given)}")
        if self.frozen_weights is not None:
            return self._around_frozen(self.frozen_weights)
        if self.weights is None:
            family = family_of(self.name or DEFAULT_MODEL)
            return StartingPoint(
                self, family, check_task(family, self.task), FAMILIES[family].contiguous_labels
            )
        trained = load_detector(self.weights, model=self.name, allow_non_finite=self.allow_non_finite)
        task = check_task(trained.family, self.task or trained.task_name)
        return StartingPoint(
            self, trained.family, task, trained.contiguous_labels, trained.model, trained.remarks
        )

    def _around_frozen(self, path: Path) -> StartingPoint:
        outer = {name: family for name, family in FAMILIES.items() if family.frozen is not None}
        name = self.name or next(iter(outer))
        family = outer.get(family_of(name))
        if family is None or family.frozen is None:
            expected = " or ".join(outer)
            raise ValueError(
                f"frozen_weights: expected the model {expected} around them; got {family_of(name)}"
            )
        trained = load_detector(
            path,
            model=name.replace(family.name, family.frozen.family, 1),
            allow_non_finite=self.allow_non_finite,
        )
        model = family.frozen.around(trained.model)
        task = check_task(family.name, self.task)
        return StartingPoint(self, family.name, task, trained.contiguous_labels, model, trained.remarks)


@dataclass(frozen=True)
class StartingPoint:
    """A resolved `ModelChoice`.

    Args:
        contiguous_labels: whether labels are 0, 1, ... rather than the category ids, as `trained` has it.
        trained: the model of the choice's weights.
        remarks: what a person should know about their file.
    """

    choice: ModelChoice
    family: str
    task: str
    contiguous_labels: bool
    trained: nn.Module | None = None
    remarks: tuple[str, ...] = ()

    def build(self, num_classes: int) -> tuple[nn.Module, list[str]]:
        """The model with its starting weights, and remarks on what was special about them."""
        family, choice = FAMILIES[self.family], self.choice
        if self.trained is None:
            config = model_config(
                choice.name or DEFAULT_MODEL, num_classes=num_classes, num_queries=choice.num_queries
            )
            return family.model(config, backbone_weights=choice.backbone_weights), []
        trained: Any = self.trained.config
        num_queries = choice.num_queries or trained.num_queries
        if choice.frozen_weights and (num_classes, num_queries) != (trained.num_classes, trained.num_queries):
            raise ValueError(
                f"{choice.frozen_weights}: has {trained.num_classes} classes and {trained.num_queries} "
                f"queries, but {num_classes} and {num_queries} are needed, which a frozen model cannot learn"
            )
        model = family.model(dataclasses.replace(trained, num_classes=num_classes, num_queries=num_queries))
        load_state_dict(model, self.trained.state_dict())
        remarks = [
            f"{choice.weights}: has {old} {what} and {new} are needed: the first {min(old, new)} are taken"
            + (", the others start afresh" if new > old else "")
            for what, old, new in (
                ("classes", trained.num_classes, num_classes),
                ("queries", trained.num_queries, num_queries),
            )
            if old != new
        ]
        return model, [*self.remarks, *remarks]


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
    def of(cls, image_size: int | None, augmentation: str) -> ImageSizes:
        """The official sizes, or all of them in proportion to `image_size`.

        "detr": its largest short side, officially 800 (the others begin at 480, the long side ends at 1333).
        "lsj": its canvas, officially 1024, raised to a multiple of 32; evaluation at 800 as well.
        """
        official = {"detr": SCALES[-1], "lsj": LargeScaleJitter.size}
        if augmentation not in official:
            raise ValueError(f"augmentation: expected 'detr' or 'lsj'; got {augmentation!r}")
        size = image_size or official[augmentation]
        ratio = size / official[augmentation]
        canvas = -(-size // 32) * 32 if augmentation == "lsj" else None
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
        image_size: see `ImageSizes.of`.
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
    sizes = ImageSizes.of(image_size, augmentation)
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
        resume=last if resume else None,
    )
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
