"""`detr-fast predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detr_fast.cli.options import (
    AllowNonFinite,
    Checkpoint,
    Compile,
    Device,
    Model,
    Precision,
    TaskName,
    Threads,
    echo_remarks,
)
from detr_fast.engine import (
    Detector,
    TrainConfig,
    load_detector,
)
from detr_fast.engine.prediction_run import (
    ALL_FORMATS,
    DEFAULT_FORMATS,
    print_predictions,
    run_predictions,
)

app = typer.Typer()


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, videos, folders, patterns in quotes; - is one on standard input."),
    ],
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option(help="Folder for results. -: JSON lines on standard output, no files.")
    ] = Path("predictions"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"Of {', '.join(ALL_FORMATS)}; several with commas, or the option several times. "
            f"predictions.jsonl is always written. Default: {','.join(DEFAULT_FORMATS)}.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Lowest score, 0..1. Default: 0.5; of panoptic segments what the paper takes."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders in folders.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what OUTPUT/predictions.jsonl holds already.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Of videos, one frame of so many.")] = 1,
    attention: Annotated[
        bool, typer.Option("--attention", help="Draw where the best queries looked, into OUTPUT/attention/.")
    ] = False,
    coco_annotations: Annotated[
        Path | None, typer.Option(help="COCO file whose image ids --format coco takes, by file name.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that run together.")] = 1,
    num_workers: Annotated[int, typer.Option(min=1, help="Threads that read images and draw.")] = 2,
    model: Model = None,
    task: TaskName = None,
    device: Device = TrainConfig.device,
    dtype: Precision = "float32",
    compile_model: Compile = False,
    allow_non_finite: AllowNonFinite = False,
    threads: Threads = None,
) -> None:
    """Find objects or segments in images and videos. Start it with torchrun for several processes."""

    def load() -> Detector:
        detector = load_detector(
            checkpoint,
            model=model,
            task=task,
            device=device,
            dtype=dtype,
            threads=threads,
            compile=compile_model,
            allow_non_finite=allow_non_finite,
        )
        echo_remarks(detector)
        return detector

    options: dict[str, Any] = {
        "threshold": threshold,
        "recursive": recursive,
        "every": every,
        "batch_size": batch_size,
        "workers": num_workers,
    }
    wanted = [name.strip() for entry in formats or [] for name in entry.split(",")]
    if str(output) == "-":
        if set(wanted) - {"jsonl"} or attention or resume:
            raise ValueError("output: standard output takes JSON lines alone; expected a folder")
        failures = print_predictions(load, images, **options)
    else:
        try:
            failures = run_predictions(
                load,
                images,
                output.expanduser(),
                formats=wanted or DEFAULT_FORMATS,
                settings={"checkpoint": str(checkpoint.expanduser().resolve()), "every": every},
                resume=resume,
                attention=attention,
                coco_annotations=coco_annotations,
                **options,
            )
        except KeyboardInterrupt:
            typer.echo(f"stopped; the same command with --resume goes on in {output}", err=True)
            raise typer.Exit(130) from None
    if failures:
        raise typer.Exit(1)
