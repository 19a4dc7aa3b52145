"""The host side of CUDA launches, on a runtime that remembers what it was asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

FAKE = ROOT / "tests" / "simt" / "fake_cuda"


def test_devices_and_shared_memory(tmp_path: Path) -> None:
    compiler = _compiler()
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{FAKE}", f"-I{ROOT / 'csrc'}"]
    program, driver = tmp_path / "launch", tmp_path / "libcuda.so.1"
    shared = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *options, *shared, FAKE / "driver.cpp", "-o", driver], check=True)
    loaded = ["-rdynamic", "-Wl,--no-as-needed", driver, f"-Wl,-rpath,{tmp_path}", "-ldl"]
    subprocess.run([compiler, *options, FAKE / "launch.cpp", *loaded, "-o", program], check=True)
    done = subprocess.run([program], check=False)
    assert done.returncode == 0, f"check {done.returncode} of launch.cpp fails"


@pytest.mark.parametrize(
    ("version", "vector"), [(11080, False), (12000, False), (12010, True), (13000, True)]
)
def test_vector_additions_only_where_the_toolkit_has_them(version: int, vector: bool, tmp_path: Path) -> None:
    """atomicAdd of a float4 came with CUDA 12.1, later than the oldest compiler that CMake accepts."""
    for header in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h"):
        (tmp_path / header).touch()
    macros = ["-D__CUDACC__", "-D__CUDA_ARCH__=900", f"-DCUDART_VERSION={version}"]
    paths = [f"-I{tmp_path}", f"-I{FAKE}", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "csrc" / "common" / "simt_cuda.h"
    command = [_compiler(), "-std=c++17", "-E", "-x", "c++", *macros, *paths, source]
    kernels = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert ("reinterpret_cast<float4*>" in kernels) == vector


def _compiler() -> str:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no c++ on the PATH")
    return compiler
