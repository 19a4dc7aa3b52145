"""`detr-fast`: each command is imported when it is called, so that help comes at once."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from detr_fast import __version__
from detr_fast.extras import explain_missing, extra_of

# of each command, its module here and its line in the help
COMMANDS = {
    "train": ("train", "Train or fine-tune a model."),
    "eval": (
        "evaluate",
        "Print what a checkpoint scores: COCO's twelve numbers, panoptic quality or mean IoU.",
    ),
    "predict": (
        "predict",
        "Find objects or segments in images and videos. Start it with torchrun for several processes.",
    ),
    "serve": ("serve", "Answer POST /predict over HTTP, with a page to try at /."),
    "export": (
        "export",
        "Write what onnxruntime, OpenVINO, TensorRT, torch or transformers run; run and compared first.",
    ),
    "convert": ("convert", "Turn data sets of other formats into the COCO layout."),
    "bench": (
        "bench",
        "Time the operators beside their peers, in a clone: --quick, --json FILE, --help for the rest.",
    ),
    "demo": (
        "demo",
        "Train a small DINO and Mask2Former on drawn shapes, evaluate them, time the operators; minutes.",
    ),
    "doctor": (
        "doctor",
        "Tell which backend serves which operator on this machine, and why the others do not.",
    ),
}


class _Commands(TyperGroup):
    """Imports the command that is called; ends a user's error in one line and exit code 2."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            module = import_module(f"{__name__}.{COMMANDS[args[0]][0]}")
            command = typer.main.get_command(module.app)
            command.name = args[0]
            self.commands[args[0]] = command
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a shell expands no ~ inside quotes and after =
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)?~(?=/|$)", _home, arg) for arg in args])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = None if ctx.params.get("debug") else what_a_person_can_mend(error)
            if message is None:
                raise
            typer.echo(message, err=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from error


def what_a_person_can_mend(error: Exception) -> str | None:
    """The line for an error that a person caused; None for defects, which keep their traceback."""
    if isinstance(error, ModuleNotFoundError) and extra_of(error) is None:
        return None
    if isinstance(error, ImportError):
        return f"error: {explain_missing(error)}"
    if isinstance(error, (ValueError, TypeError, OSError)):
        return f"error: {error}"
    if "detr_fast.engine" not in sys.modules:
        return None  # whose errors follow
    from detr_fast.engine import Interrupted, NonFiniteLossError
    from detr_fast.ops import BackendUnavailable

    if isinstance(error, Interrupted):
        return str(error)
    return f"error: {error}" if isinstance(error, (BackendUnavailable, NonFiniteLossError)) else None


def _home(tilde: re.Match[str]) -> str:
    return f"{tilde[1] or ''}{Path.home()}"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, evaluate and use models of the DETR family on fast operators.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"detr_fast {__version__}, torch {metadata.version('torch')}")
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


for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(lambda: None)


def main() -> None:
    """The console command."""
    app()
