"""Calls of `detr-fast` inside the test's process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from detr_fast import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout  # progress bars go to stderr


def refused(*arguments: object) -> str:
    """The one line that a user's error ends in."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]
