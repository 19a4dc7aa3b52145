"""`detr-fast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detr_fast.cli.options import (
    Threads,
    set_threads,
)
from detr_fast.engine.demo import run_demo

app = typer.Typer()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/demo"),
    threads: Threads = None,
) -> None:
    """Train a small DINO and Mask2Former on drawn shapes, evaluate them, time the operators; minutes."""
    set_threads(threads)
    run_demo(output, echo=typer.echo)
