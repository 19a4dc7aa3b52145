"""Code in docs/ imports what exists of ours, and runs where it needs nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_imports_of_ours_exists(page: Path) -> None:
    nodes = [node for code in blocks(page) for node in ast.walk(ast.parse(code))]
    ours = [x for x in nodes if isinstance(x, ast.ImportFrom) and str(x.module).startswith("detr_fast")]
    assert ours or any(isinstance(x, ast.Import) and x.names[0].name == "detr_fast" for x in nodes)
    for node in ours:
        exec(ast.unparse(node), {})


def test_code_for_your_own_model_runs() -> None:
    (page,) = (page for page in PAGES if page.stem == "own-model")
    scope: dict[str, Any] = {}
    for code in blocks(page):
        exec(code, scope)
    assert scope["output"].shape == (2, 100, 256)
    assert "loss_ce_4" in scope["losses"]
