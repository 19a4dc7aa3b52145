"""`detr-fast bench`."""

from __future__ import annotations

import typer

from detr_fast.bench import run_benchmarks

app = typer.Typer()


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def bench(ctx: typer.Context) -> None:
    """Time the operators beside their peers, in a clone: --quick, --json FILE, --help for the rest."""
    if code := run_benchmarks(ctx.args):
        raise typer.Exit(code)
