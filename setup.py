"""Lets scikit-build-core's setuptools plugin compile `detr_fast._C`; metadata stands in pyproject.toml."""

import os
import shlex
import shutil
import sys

from setuptools import setup

COMPILING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
NO_COMPILER = (
    "detr_fast: no C++ compiler was found (CXX, c++, g++, clang++). Install g++ 9 or newer, or set "
    "DETR_FAST_EXTENSION=OFF to install without compiled code: Triton serves GPUs then, PyTorch the CPU."
)


def has_compiler() -> bool:
    """Whether CMake will find a C++ compiler: the one that CXX names, or a usual one."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(map(shutil.which, named or ["c++", "g++", "clang++"]))


choice = os.environ.get("DETR_FAST_EXTENSION", "ON").upper()
if choice not in ("ON", "OFF"):
    sys.exit(f"DETR_FAST_EXTENSION: expected ON or OFF; got {choice}")
if choice == "OFF":
    setup()
else:
    if COMPILING.intersection(sys.argv) and not has_compiler():
        sys.exit(NO_COMPILER)
    setup(cmake_source_dir=".")
