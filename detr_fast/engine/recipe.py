"""Training on a COCO-format data set, from scratch or from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from detr_fast.checkpoints import load_state_dict
from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.data import CocoDetection, build_detection_dataset
from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.detector import Detector, dataset_categories, load_detector, model_config
from detr_fast.engine.distributed import is_main, pick_device
from detr_fast.engine.evaluate import evaluate_detection
from detr_fast.engine.train import Trainer
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig

DEFAULT_MODEL = "detr-r50"


@dataclass(frozen=True)
class ModelChoice:
    """What to train.

    name: of `MODELS`; by default the architecture of `weights`, else detr-r50.
    weights: a checkpoint to start from; a class head of another size starts afresh.
    backbone_weights: a torchvision ResNet file to start the backbone from.
    num_classes: by default what the data needs. num_queries: by default the model's.
    """

    name: str | None = None
    weights: Path | None = None
    backbone_weights: Path | None = None
    num_classes: int | None = None
    num_queries: int | None = None


def train_on_coco(
    data: Path,
    output: Path,
    config: TrainConfig,
    choice: ModelChoice = ModelChoice(),
    *,
    image_size: int = SCALES[-1],
    resume: bool = False,
    skip_bad_images: bool = False,
    evaluate: bool = True,
    echo: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains a DETR on a data set in the COCO 2017 layout; what `detr-fast train` does.

    Args:
        data: the data set's folder.
        output: the run's folder. One that holds a run already is only gone on with (`resume`).
        config: how to train.
        choice: what to train.
        image_size: largest short side, pixels; DETR's other scales follow in proportion.
        resume: go on from `output/last.pt`.
        skip_bad_images: log unreadable training images and go on, instead of stopping.
        evaluate: on the val split, as `config.eval_every` says.
        echo: told what a person should know.

    Returns:
        The last evaluation's twelve numbers; empty without one.
    """
    last = output / "last.pt"
    if last.exists() and not resume:
        raise ValueError(f"{output}: holds a run already; resume it, or choose another output folder")
    scales, max_size = scales_for(image_size)
    dataset = build_detection_dataset(
        data,
        "train",
        train=True,
        scales=scales,
        max_size=max_size,
        num_classes=choice.num_classes,
        seed=config.seed,
        on_bad_image="skip" if skip_bad_images else "raise",
    )
    held_out = None
    if evaluate:
        held_out = build_detection_dataset(
            data, "val", train=False, scales=scales, max_size=max_size, num_classes=dataset.num_classes
        )
    torch.manual_seed(config.seed)
    model, remarks = build_model(choice, dataset.num_classes)
    if is_main():
        for remark in remarks:
            echo(remark)
    trainer = Trainer(
        model,
        detr_criterion(model.config),
        dataset,
        config,
        output,
        description=Detector(model, dataset_categories(dataset), image_size, max_size).description(),
        evaluate=None if held_out is None else evaluator(held_out, config),
        resume=last if resume else None,
    )
    return trainer.fit()


def build_model(choice: ModelChoice, num_classes: int) -> tuple[DETR, list[str]]:
    """The chosen model with its starting weights, and remarks on what was special about them."""
    if choice.weights is None:
        name = choice.name or DEFAULT_MODEL
        config = model_config(name, num_classes=num_classes, num_queries=choice.num_queries)
        return DETR(config, backbone_weights=choice.backbone_weights), []
    if choice.backbone_weights is not None:
        raise ValueError("weights, backbone_weights: expected one of them; got both")
    trained = load_detector(choice.weights, model=choice.name).model
    num_queries = choice.num_queries or trained.config.num_queries
    model = DETR(dataclasses.replace(trained.config, num_classes=num_classes, num_queries=num_queries))
    report = load_state_dict(model, trained.state_dict())
    if not report.reinitialized:
        return model, []
    return model, [
        f"{choice.weights}: has {trained.config.num_classes} classes and the data {num_classes}: "
        "the class head starts afresh"
    ]


def detr_criterion(config: DETRConfig, eos_coef: float = 0.1) -> SetCriterion:
    """DETR's matcher and losses with the official weights; `eos_coef` is that of "no object"."""
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    return SetCriterion(config.num_classes, matcher, detection_weights(config.dec_layers), eos_coef)


def evaluator(dataset: CocoDetection, config: TrainConfig) -> Callable[[nn.Module], dict[str, float]]:
    """What a `Trainer` calls to evaluate on `dataset`."""
    device = pick_device(config.device)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return evaluate_detection(
            model,
            dataset,
            device=device,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            amp=config.amp,
        )

    return evaluate


def scales_for(image_size: int) -> tuple[tuple[int, ...], int]:
    """DETR's short sides, 480 to 800, and its bound of the long side, 1333, in proportion to `image_size`."""
    ratio = image_size / SCALES[-1]
    return tuple(round(scale * ratio) for scale in SCALES), round(MAX_SIZE * ratio)
