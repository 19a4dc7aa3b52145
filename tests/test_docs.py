"""Pages under docs/: their code runs, their commands parse, and the messages that they explain exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from detr_fast.cli import app
from detr_fast.cli.train import TrainCommand
from tests.paths import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_OTHERS = {
    "index",
    "transformers",
    "mmdetection",
    "detr",
    "detectron2",
    "realtime",
    "serving",
}  # need what is not here
COMMAND = re.compile(r"(?:^|-m )detr[-_]fast (.*)$")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_imports_of_ours_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("detr_fast"):
                exec(ast.unparse(node), {})


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in WITH_OTHERS and blocks(page, "python")],
    ids=lambda page: page.stem,
)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that makes `expected` says what `actual`, of the block before, is."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(code, scope)
        if "expected" in scope:
            torch.testing.assert_close(scope["actual"], scope.pop("expected"), rtol=1e-4, atol=1e-4)


def commands() -> list[tuple[str, str]]:
    lines = [
        (page.stem, line.removeprefix(".venv/bin/"))
        for page in [*PAGES, ROOT / "README.md"]
        for line in "\n".join(blocks(page, "sh")).splitlines()
    ]
    return [(page, match[1]) for page, line in lines if (match := COMMAND.search(line))]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_have_the_options_that_pages_give_them(page: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    arguments = shlex.split(line, comments=True)
    while hasattr(command, "commands"):
        _, command, arguments = command.resolve_command(command.context_class(command), arguments)
    arguments = [argument for argument in arguments if argument != "..."]
    if isinstance(command, TrainCommand):
        arguments = command.spelled_out(arguments)
    context = command.context_class(command, **command.context_settings)
    command.make_parser(context).parse_args(arguments)


def strings_of_the_source() -> str:
    """All string constants of the package and its build, parts of one message beside each other."""
    texts = []
    for path in [*(ROOT / "detr_fast").rglob("*.py"), ROOT / "setup.py"]:
        texts += [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    texts += [(ROOT / name).read_text() for name in ("CMakeLists.txt", "csrc/common/bind.cpp")]
    return "\n".join(texts)


def test_messages_that_are_explained_exist() -> None:
    source = strings_of_the_source()
    text = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`.* \|", text, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for part in filter(None, re.split(r"\s*\.\.\.\)?\s*", message)):
            assert part in source, message
