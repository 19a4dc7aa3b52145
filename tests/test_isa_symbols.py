"""The CPU sources define nothing that the linker could share between instruction sets."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

SOURCES = sorted((ROOT / "csrc").glob("*/cpu.cpp"))


def _compiler() -> str:
    if platform.machine() != "x86_64":
        pytest.skip("one instruction set only on this machine")
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("no c++ and nm on the PATH")
    return compiler


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_no_symbol_is_shared_between_instruction_sets(source: Path, tmp_path: Path) -> None:
    """A weak definition (an inline function, a std:: template) could run AVX code on a baseline machine."""
    flags = ["-std=c++17", "-O2", "-mavx2", "-mfma", "-mf16c", "-DDETR_FAST_ISA=avx2", f"-I{ROOT / 'csrc'}"]
    subprocess.run([_compiler(), *flags, "-c", source, "-o", tmp_path / "x.o"], check=True)
    listing = subprocess.run(
        ["nm", "--demangle", "--defined-only", tmp_path / "x.o"], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2)[1:] for line in listing.stdout.splitlines()]
    assert any(kind == "T" and "::avx2::" in name for kind, name in symbols)
    shared = [name for kind, name in symbols if kind in "WVuT" and "::avx2::" not in name]
    assert shared == []


def test_every_operator_with_cpu_code_is_checked() -> None:
    assert {path.parent.name for path in SOURCES} >= {"box_match_cost", "linear_assignment", "ms_deform_attn"}
