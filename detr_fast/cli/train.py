"""`detr-fast train`."""

from __future__ import annotations

import dataclasses
import shlex
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from detr_fast.cli.options import (
    EXIF,
    AllowNonFinite,
    Data,
    Model,
    TaskName,
    Threads,
    TrainImages,
    TrainJson,
    ValFraction,
    ValImages,
    ValJson,
    set_threads,
)
from detr_fast.data import DataSource, ImageError
from detr_fast.distributed import is_main, pick_device, process_group, world_size
from detr_fast.engine import (
    FAMILIES,
    TASKS,
    Interrupted,
    TrainConfig,
    train_config,
)
from detr_fast.engine.model_choice import ModelChoice
from detr_fast.engine.recipe import train_on_coco
from detr_fast.engine.resuming import EarlierRun
from detr_fast.families.family import SMALL_TRAINING

app = typer.Typer()


def _setting(name: str, about: str) -> Any:
    """An option for a training setting, with its default and the families that have another."""
    usual = getattr(TrainConfig, name)
    others = [
        f"{family} {training[name]}"
        for family, training in [
            *((family, about.training) for family, about in FAMILIES.items()),
            ("-tiny", SMALL_TRAINING),
        ]
        if training.get(name, usual) != usual
    ]
    return typer.Option(help=f"{about} Default: {', '.join([str(usual), *others])}.", show_default=False)


class Resume(str, Enum):
    """Whether a run goes on."""

    yes = "yes"
    auto = "auto"


class TrainCommand(TyperCommand):
    """`--resume` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.spelled_out(args))

    @staticmethod
    def spelled_out(args: list[str]) -> list[str]:
        """With a value for each `--resume`."""
        values = [choice.value for choice in Resume]
        alone = (
            arg == "--resume" and following not in values for arg, following in zip_longest(args, args[1:])
        )
        return [arg + "=yes" * one for arg, one in zip(args, alone, strict=True)]


@app.command(cls=TrainCommand)
def train(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, log and TensorBoard events.")],
    root: Data = None,
    train_json: TrainJson = None,
    train_images: TrainImages = None,
    val_json: ValJson = None,
    val_images: ValImages = None,
    val_fraction: ValFraction = None,
    exif: Annotated[str | None, EXIF] = None,
    model: Model = None,
    task: TaskName = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint to fine-tune; the data may have other classes.")
    ] = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="ImageNet file to start the backbone from.")
    ] = None,
    frozen_weights: Annotated[
        Path | None,
        typer.Option(help="Trained DETR for detr-segm to keep as it is; the mask head learns."),
    ] = None,
    resume: Annotated[
        Resume | None,
        typer.Option(
            help="Go on from OUTPUT/last.pt; options that are not given are the earlier run's. "
            "auto: start where there is none.",
            metavar="[auto]",
        ),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Default: what the data needs.")] = None,
    num_queries: Annotated[
        int | None, typer.Option(help="Objects an image at most. Default: the model's.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Largest short side in pixels, or side of LSJ's canvas; all else scales. "
            "Default: 800, or 1024; 256 of -tiny models; what the weights were trained on.",
        ),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(help="detr (random sizes, crops) or lsj (large-scale jitter). Default: the family's."),
    ] = None,
    skip_bad_images: Annotated[
        bool | None, typer.Option("--skip-bad-images", help="Log and skip, not stop.")
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option("--evaluate/--no-evaluate", help="Evaluate on the val split. Default: --evaluate."),
    ] = None,
    epochs: Annotated[int | None, _setting("epochs", "Passes over the data.")] = None,
    batch_size: Annotated[int | None, _setting("batch_size", "Images a process and backward pass.")] = None,
    accumulate: Annotated[int | None, _setting("accumulate", "Backward passes a step.")] = None,
    lr: Annotated[float | None, _setting("lr", "Learning rate.")] = None,
    lr_backbone: Annotated[float | None, _setting("lr_backbone", "The backbone's.")] = None,
    weight_decay: Annotated[float | None, _setting("weight_decay", "AdamW's.")] = None,
    lr_drop: Annotated[int | None, _setting("lr_drop", "Epochs until both rates drop to a tenth.")] = None,
    warmup_steps: Annotated[int | None, _setting("warmup_steps", "Steps of rising rates.")] = None,
    clip_max_norm: Annotated[float | None, _setting("clip_max_norm", "Gradient bound; 0: none.")] = None,
    amp: Annotated[bool | None, typer.Option(help="Forward pass in bfloat16.")] = None,
    ema: Annotated[float | None, _setting("ema", "Decay of averaged weights, say 0.9997; 0: none.")] = None,
    seed: Annotated[int | None, _setting("seed", "Of everything random.")] = None,
    num_workers: Annotated[int | None, _setting("num_workers", "Processes that read images.")] = None,
    eval_every: Annotated[int | None, _setting("eval_every", "Epochs between evaluations.")] = None,
    checkpoint_every: Annotated[
        int | None, _setting("checkpoint_every", "Steps between checkpoints; 0: one an epoch.")
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, _setting("checkpoint_minutes", "Minutes between checkpoints; 0: none by time.")
    ] = None,
    log_every: Annotated[int | None, _setting("log_every", "Steps between log records.")] = None,
    device: Annotated[str | None, _setting("device", "auto, cpu, cuda or cuda:N.")] = None,
    allow_non_finite: AllowNonFinite = False,
    threads: Threads = None,
) -> None:
    """Train or fine-tune a model.

    Eight GPUs of one machine: torchrun --nproc-per-node 8 -m detr_fast train ...; of two, on each of them:
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 -m detr_fast ...
    """
    given = locals()
    settings = {field.name: given[field.name] for field in dataclasses.fields(TrainConfig)}
    places = {field.name: given[field.name] for field in dataclasses.fields(DataSource)}
    set_threads(threads)
    choice = ModelChoice(
        model, weights, backbone_weights, num_classes, num_queries, task, frozen_weights, allow_non_finite
    )
    earlier = None
    if resume == Resume.yes or (resume == Resume.auto and (output / "last.pt").exists()):
        earlier = EarlierRun.read(output)
        choice = earlier.model_choice(choice)
        image_size, augmentation, skip_bad_images = (
            earlier.options.get(name) if given[name] is None else given[name]
            for name in ("image_size", "augmentation", "skip_bad_images")
        )
    with process_group(pick_device(device or (earlier.train_config() if earlier else TrainConfig).device)):
        start = choice.starting_point()
        if earlier is None:
            source = DataSource(**{name: value for name, value in places.items() if value is not None})
            config = train_config(start.family, small=start.small, **settings)
        else:
            source, config = earlier.data_source(**places), earlier.train_config(**settings)
            evaluate = earlier.evaluated if evaluate is None else evaluate
        try:
            metrics = train_on_coco(
                source,
                output,
                config,
                start,
                image_size=image_size,
                augmentation=augmentation,
                resume=earlier is not None,
                skip_bad_images=bool(skip_bad_images),
                evaluate_val=evaluate is not False,
                echo=typer.echo,
            )
        except ImageError as error:
            raise ImageError(f"{error}; --skip-bad-images trains without such images") from error
        except Interrupted as stopped:
            launched = "torchrun ... -m detr_fast" if world_size() > 1 else "detr-fast"
            go_on = f"go on with: {launched} train --output {shlex.quote(str(output))} --resume"
            raise Interrupted(stopped.number, f"{stopped}\n{go_on}") from None
        if is_main():
            if metrics:
                typer.echo(TASKS[start.task].format(metrics))
            typer.echo(f"written: {output}")
