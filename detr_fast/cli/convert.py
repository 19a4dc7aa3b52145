"""`detr-fast convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detr_fast.data import convert_yolo

app = typer.Typer()


@app.callback(no_args_is_help=True)
def _group() -> None:
    """Turn data sets of other formats into the COCO layout."""


@app.command("yolo")
def convert_yolo_command(
    source: Annotated[Path, typer.Argument(help="data.yaml of the YOLO data set.")],
    output: Annotated[Path, typer.Argument(help="New folder for the COCO 2017 layout.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images, not link to them.")] = False,
) -> None:
    """Turn a YOLO data set (boxes or polygons) into the COCO layout that `train` reads."""
    for split, summary in convert_yolo(source, output, images="copy" if copy else "link").items():
        typer.echo(f"{split}: {summary}")
    typer.echo(f"written: {output}")
