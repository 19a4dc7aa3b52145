"""Options that commands share, and what they do alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from detr_fast.distributed import is_main
from detr_fast.engine import (
    FAMILIES,
    Detector,
)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder in the layout of COCO 2017, Roboflow, CVAT or Label Studio."),
]
TrainJson = Annotated[Path | None, typer.Option(help="COCO instances file to train on.")]
TrainImages = Annotated[Path | None, typer.Option(help="Folder of its images.")]
ValJson = Annotated[Path | None, typer.Option(help="COCO instances file to evaluate on.")]
ValImages = Annotated[Path | None, typer.Option(help="Folder of its images.")]
ValFraction = Annotated[
    float | None,
    typer.Option(help="Share of the training images to hold out where there is no validation split."),
]
EXIF = typer.Option(
    "--exif",
    help="Where sizes do not tell whether annotations are of the upright image: apply or ignore its EXIF "
    "orientation. auto: as for the images whose sizes tell, else apply.",
)
ExifOption = Annotated[str, EXIF]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(help="Processes that read images.")]
Amp = Annotated[bool, typer.Option("--amp", help="Forward pass in bfloat16.")]
Checkpoint = Annotated[Path, typer.Option(help="From `detr-fast train`, or an official one of any family.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A family, alone or with one of its variants, as in detr-r50: "
        + "; ".join(
            f"{family} ({', '.join(f'-{variant}' for variant in about.variants)})"
            for family, about in FAMILIES.items()
        )
        + ". Default: what the checkpoint says, else detr-r50."
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="; ".join(f"{family}: {', '.join(about.tasks)}" for family, about in FAMILIES.items())
        + ". Default: the checkpoint's, else the first."
    ),
]
AllowNonFinite = Annotated[
    bool, typer.Option("--allow-non-finite", help="Load weights that are NaN or infinite, too.")
]
Precision = Annotated[
    str,
    typer.Option("--dtype", help="What the network computes in: float32, bfloat16, or float16 on a GPU."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Run the network by torch.compile.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")]


def echo_remarks(detector: Detector) -> None:
    """Says what was taken from a checkpoint, beside the results."""
    if is_main():
        for remark in detector.remarks:
            typer.echo(remark, err=True)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
