"""Build hook: scikit-build-core's setuptools plugin compiles `detr_fast._C` with CMake; metadata stands in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
