"""`detr-fast`: train, eval, predict, serve, export, convert, bench, demo, doctor."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
import warnings
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperCommand, TyperGroup

from detr_fast import __version__
from detr_fast.bench import run_benchmarks
from detr_fast.data import DataSource, ImageError, convert_yolo
from detr_fast.distributed import is_main, pick_device, process_group, world_size
from detr_fast.doctor import diagnose
from detr_fast.engine import (
    FAMILIES,
    TASKS,
    Detector,
    Interrupted,
    NonFiniteLossError,
    TrainConfig,
    load_detector,
    predicted,
    train_config,
)
from detr_fast.engine.demo import run_demo
from detr_fast.engine.model_choice import ModelChoice
from detr_fast.engine.outputs import check_not_inputs
from detr_fast.engine.prediction_run import (
    ALL_FORMATS,
    DEFAULT_FORMATS,
    print_predictions,
    run_predictions,
)
from detr_fast.engine.recipe import evaluation_dataset, train_on_coco
from detr_fast.engine.resuming import EarlierRun
from detr_fast.engine.scores_report import write_scores_report
from detr_fast.export import FORMATS, export, export_int8, format_of, trtexec_lines
from detr_fast.extras import explain_missing
from detr_fast.families.family import SMALL_TRAINING
from detr_fast.metrics import Evaluator
from detr_fast.ops import BackendUnavailable
from detr_fast.tasks.detection import BoxScorer

# What a person can cause and mend; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, BackendUnavailable, NonFiniteLossError)


class _Commands(TyperGroup):
    """Ends a user's error in one line and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a shell expands no ~ inside quotes and after =
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)?~(?=/|$)", _home, arg) for arg in args])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Interrupted as stopped:
            typer.echo(str(stopped), err=True)
            raise typer.Exit(stopped.exit_code) from stopped
        except USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            message = explain_missing(error) if isinstance(error, ImportError) else error
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(2) from error


def _home(tilde: re.Match[str]) -> str:
    return f"{tilde[1] or ''}{Path.home()}"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and use models of the DETR family on fast operators.",
)


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


convert = typer.Typer(no_args_is_help=True, help="Turn data sets of other formats into the COCO layout.")
app.add_typer(convert, name="convert")

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"detr_fast {__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # the place in a library's source tells a user nothing
    warnings.formatwarning = lambda message, *_, **__: f"WARNING: {message}\n"


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
    _set_threads(threads)
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
    _set_threads(threads)
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
        _echo_remarks(detector)
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
                _write_json(json_file, scores.metrics)
            if save_predictions is not None:
                _write_json(save_predictions, scores.detections)
            if report is not None:
                write_scores_report(scores, detector.task, report)
                typer.echo(f"written: {report}")


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
        _echo_remarks(detector)
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
    _echo_remarks(detector)
    serve(detector, host=host, port=port, options=options, echo=typer.echo)


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
    """Write what onnxruntime, OpenVINO, TensorRT, torch or transformers run; it is run and compared first."""
    if output is None:
        chosen = format_of(None, format or "onnx")
        output = Path("model").with_suffix(chosen.suffix)
    chosen = format_of(output, format)
    detector = load_detector(checkpoint, model=model, task=task, allow_non_finite=allow_non_finite)
    _echo_remarks(detector)
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


@convert.command("yolo")
def convert_yolo_command(
    source: Annotated[Path, typer.Argument(help="data.yaml of the YOLO data set.")],
    output: Annotated[Path, typer.Argument(help="New folder for the COCO 2017 layout.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images, not link to them.")] = False,
) -> None:
    """Turn a YOLO data set (boxes or polygons) into the COCO layout that `train` reads."""
    for split, summary in convert_yolo(source, output, images="copy" if copy else "link").items():
        typer.echo(f"{split}: {summary}")
    typer.echo(f"written: {output}")


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def bench(ctx: typer.Context) -> None:
    """Time the operators beside their peers, in a clone: --quick, --json FILE, --help for the rest."""
    if code := run_benchmarks(ctx.args):
        raise typer.Exit(code)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/demo"),
    threads: Threads = None,
) -> None:
    """Train a small DINO and Mask2Former on drawn shapes, evaluate them, time the operators; minutes."""
    _set_threads(threads)
    run_demo(output, echo=typer.echo)


@app.command()
def doctor() -> None:
    """Tell which backend serves which operator on this machine, and why the others do not."""
    for line in diagnose():
        typer.echo(line)


def _echo_remarks(detector: Detector) -> None:
    """Says what was taken from a checkpoint, beside the results."""
    if is_main():
        for remark in detector.remarks:
            typer.echo(remark, err=True)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":  # torchrun -m detr_fast.cli
    main()
