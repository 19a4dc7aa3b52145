"""Lets scikit-build-core's setuptools plugin compile `detr_fast._C`; metadata stands in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
