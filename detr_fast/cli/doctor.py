"""`detr-fast doctor`."""

from __future__ import annotations

import typer

from detr_fast.doctor import diagnose

app = typer.Typer()


@app.command()
def doctor() -> None:
    """Tell which backend serves which operator on this machine, and why the others do not."""
    for line in diagnose():
        typer.echo(line)
