"""The CUDA sources compiled for the host: builds the test-only module `_simt` on demand and imports it."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import torch

from detr_fast.extension import NotReady
from tests.paths import ROOT

SOURCE = ROOT / "tests" / "simt"


class SimtBuildError(RuntimeError):
    """The module did not build; the message holds the compiler's output."""


def simt_module() -> ModuleType:
    """The module `_simt`, brought up to date with its sources once a process."""
    module = _build_once()
    if isinstance(module, SimtBuildError):
        raise module
    return module


@functools.cache
def _build_once() -> ModuleType | SimtBuildError:
    try:
        return _build()
    except SimtBuildError as error:
        return error


def _build() -> ModuleType:
    directory = ROOT / "build" / "simt" / sysconfig.get_config_var("SOABI")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            tool("cmake"),
            *("-S", str(SOURCE), "-B", str(directory), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        )
        _run(tool("cmake"), "--build", str(directory))
        return _import(directory / f"_simt{sysconfig.get_config_var('EXT_SUFFIX')}")


def tool(name: str) -> str:
    """The program beside this Python, where pip puts it, or else in PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        raise SimtBuildError(f"{name} is needed to build {SOURCE}: pip install {name}")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SimtBuildError(f"{' '.join(command)} failed:\n{done.stdout[:8000]}")


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_simt", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
    except ImportError as error:  # a launcher that is declared but defined nowhere
        raise SimtBuildError(str(error)) from error
    spec.loader.exec_module(module)
    module.use_tensors_of(torch, NotReady)
    return module
