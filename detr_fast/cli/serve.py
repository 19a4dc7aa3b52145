"""`detr-fast serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detr_fast.cli.options import (
    AllowNonFinite,
    Compile,
    Device,
    Model,
    Precision,
    TaskName,
    Threads,
    echo_remarks,
)
from detr_fast.engine import (
    TrainConfig,
    load_detector,
)

app = typer.Typer()


@app.command("serve")
def serve_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="From `detr-fast train` or `export`, or an official one of any family.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 answers the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Images of one size that run together.")] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long an image waits for others while the model is idle.")
    ] = 5,
    max_queue: Annotated[int, typer.Option(min=1, help="Questions at once; more get 503.")] = 128,
    max_megapixels: Annotated[float, typer.Option(help="Of an image; larger ones get 413.")] = 50,
    max_megabytes: Annotated[float, typer.Option(help="Of a request; larger ones get 413.")] = 32,
    model: Model = None,
    task: TaskName = None,
    device: Device = TrainConfig.device,
    dtype: Precision = "float32",
    compile_model: Compile = False,
    allow_non_finite: AllowNonFinite = False,
    threads: Threads = None,
) -> None:
    """Answer POST /predict over HTTP, with a page to try at /."""
    from detr_fast.serve import ServeOptions, serve  # needs an extra of its own

    options = ServeOptions(
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        max_queue=max_queue,
        max_pixels=round(max_megapixels * 1e6),
        max_bytes=round(max_megabytes * 2**20),
    )
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
    serve(detector, host=host, port=port, options=options, echo=typer.echo)
