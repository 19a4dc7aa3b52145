"""Installing over a module in use leaves its processes alive; without a compiler it ends in one line."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.simt.build import tool

PROJECT = f"""
cmake_minimum_required(VERSION 3.24)
project(answer LANGUAGES CXX)
add_library(answer MODULE answer.cpp)
include({ROOT}/cmake/install_by_rename.cmake)
install_by_rename(answer package)
"""


def test_install_over_a_loaded_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)

    def install(answer: int) -> Path:
        Path("answer.cpp").write_text(f'extern "C" int answer() {{ return {answer}; }}')
        cmake, ninja = tool("cmake"), tool("ninja")
        configure = [cmake, "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (
            configure,
            [cmake, "--build", "build"],
            [cmake, "--install", "build", "--prefix", "."],
        ):
            subprocess.run(command, check=True, capture_output=True)
        (module,) = Path("package").iterdir()
        return module.resolve()

    module = install(1)
    old = ctypes.CDLL(str(module))
    file = module.stat().st_ino
    assert install(2) == module
    assert module.stat().st_ino != file, "the file was rewritten in place"
    assert old.answer() == 1
    copy = module.with_name("copy.so")  # the loader would give the old one for the same path
    module.rename(copy)
    assert ctypes.CDLL(str(copy)).answer() == 2


def test_the_extension_is_installed_so() -> None:
    lines = (ROOT / "CMakeLists.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("install")] == ["install_by_rename(_C detr_fast)"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": ""}, "no C++ compiler was found"),
        ({"CXX": "missing-c++ -O1"}, "no C++ compiler was found"),
        ({"DETR_FAST_EXTENSION": "no"}, "DETR_FAST_EXTENSION: expected ON or OFF; got NO"),
    ],
)
def test_what_the_build_cannot_do_is_one_line(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
