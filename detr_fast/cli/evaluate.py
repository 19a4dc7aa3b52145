"""`detr-fast eval`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from detr_fast.cli.options import (
    AllowNonFinite,
    Amp,
    Checkpoint,
    Data,
    Device,
    ExifOption,
    Model,
    TaskName,
    Threads,
    TrainImages,
    TrainJson,
    ValFraction,
    ValImages,
    ValJson,
    Workers,
    echo_remarks,
    set_threads,
    write_json,
)
from detr_fast.data import DataSource
from detr_fast.distributed import is_main, pick_device, process_group
from detr_fast.engine import (
    TrainConfig,
    load_detector,
    predicted,
)
from detr_fast.engine.outputs import check_not_inputs
from detr_fast.engine.recipe import evaluation_dataset
from detr_fast.engine.scores_report import write_scores_report
from detr_fast.metrics import Evaluator
from detr_fast.tasks.detection import BoxScorer

app = typer.Typer()


@app.command("eval")
def evaluate_command(
    checkpoint: Checkpoint,
    root: Data = None,
    train_json: TrainJson = None,
    train_images: TrainImages = None,
    val_json: ValJson = None,
    val_images: ValImages = None,
    val_fraction: ValFraction = None,
    exif: ExifOption = DataSource.exif,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    model: Model = None,
    task: TaskName = None,
    image_size: Annotated[int | None, typer.Option(min=32, help="Short side; default: as trained.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a process.")] = TrainConfig.batch_size,
    num_workers: Workers = TrainConfig.num_workers,
    amp: Amp = False,
    device: Device = TrainConfig.device,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a table of classes, precision-recall curves and confusions."),
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(help="File for all detections in COCO's result format.")
    ] = None,
    evaluator: Annotated[
        Evaluator,
        typer.Option(help="Who counts boxes and masks; auto: the faster one that is installed."),
    ] = "auto",
    allow_non_finite: AllowNonFinite = False,
    threads: Threads = None,
) -> None:
    """Print what a checkpoint scores: COCO's twelve numbers, panoptic quality or mean IoU."""
    given = locals()
    source = DataSource(**{field.name: given[field.name] for field in dataclasses.fields(DataSource)})
    set_threads(threads)
    where = pick_device(device)
    files = [path for path in (json_file, save_predictions) if path is not None]
    inputs = [path for path in (checkpoint, source.train_json, source.val_json) if path is not None]
    if source.root is not None:  # what lies in a data set is a part of it
        inputs += [
            path for path in files if source.root.resolve() in path.resolve().parents and path.exists()
        ]
    check_not_inputs(files, inputs)
    with process_group(where):
        detector = load_detector(
            checkpoint, model=model, task=task, device=device, allow_non_finite=allow_non_finite
        )
        echo_remarks(detector)
        if save_predictions is not None and detector.task_name not in ("detection", "instance"):
            raise ValueError(
                f"save_predictions: expected detection or instance; the task is {detector.task_name}"
            )
        dataset = evaluation_dataset(detector, source, split, image_size)
        if is_main():
            for remark in dataset.remarks:
                typer.echo(f"{split}: {remark}", err=True)
        scorer = predicted(detector, dataset, batch_size, num_workers, amp)
        scores = scorer.scores(evaluator) if isinstance(scorer, BoxScorer) else scorer.scores()
        if is_main():
            typer.echo(detector.task.format(scores.metrics))
            if json_file is not None:
                write_json(json_file, scores.metrics)
            if save_predictions is not None:
                write_json(save_predictions, scores.detections)
            if report is not None:
                write_scores_report(scores, detector.task, report)
                typer.echo(f"written: {report}")
