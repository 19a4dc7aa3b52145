"""`detr-fast export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detr_fast.cli.options import (
    AllowNonFinite,
    Data,
    Model,
    TaskName,
    ValImages,
    ValJson,
    echo_remarks,
)
from detr_fast.data import DataSource
from detr_fast.engine import (
    load_detector,
)
from detr_fast.engine.recipe import evaluation_dataset
from detr_fast.export import FORMATS, export, export_int8, format_of, trtexec_lines

app = typer.Typer()


@app.command("export")
def export_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="From `detr-fast train`, an official one, or a folder of transformers.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="model.onnx, model.xml (OpenVINO), model.pt2 (torch) or a folder (transformers)."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(FORMATS)}. Default: what the suffix of OUTPUT says, else onnx."),
    ] = None,
    processing: Annotated[
        bool,
        typer.Option(
            "--with-processing/--without-processing", help="Normalise pixels and decode detections inside."
        ),
    ] = True,
    half: Annotated[bool, typer.Option("--half", help="Weights in float16 (OpenVINO).")] = False,
    int8: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to calibrate convolutions in 8 bits with (ONNX and OpenVINO); measured on "
            "the val split of the data."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="With --int8: how far AP (PQ, mIoU) may fall, in 0..1, or nothing is kept.")
    ] = 0.01,
    root: Data = None,
    val_json: ValJson = None,
    val_images: ValImages = None,
    model: Model = None,
    task: TaskName = None,
    allow_non_finite: AllowNonFinite = False,
) -> None:
    """Write what onnxruntime, OpenVINO, TensorRT, torch or transformers run; run and compared first."""
    if output is None:
        chosen = format_of(None, format or "onnx")
        output = Path("model").with_suffix(chosen.suffix)
    chosen = format_of(output, format)
    detector = load_detector(checkpoint, model=model, task=task, allow_non_finite=allow_non_finite)
    echo_remarks(detector)
    if int8 is None:
        export(detector, output, format=chosen.name, processing=processing, half=half)
    else:
        if half:
            raise ValueError("half: expected it without int8")
        source = DataSource(root=root, val_json=val_json, val_images=val_images)
        found = export_int8(
            detector,
            output,
            int8,
            evaluation_dataset(detector, source, "val"),
            format=chosen.name,
            processing=processing,
            max_drop=max_drop,
        )
        typer.echo(f"{found.metric}: {found.before:.4f} in float32, {found.after:.4f} in 8 bits")
    typer.echo(f"written: {output}")
    if chosen.suffix == ".onnx":
        for line in trtexec_lines(detector, output, processing):
            typer.echo(line)
