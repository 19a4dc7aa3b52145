"""Detectors behind HTTP: `detr-fast serve`."""

from detr_fast.serve.app import ServeOptions, create_app
from detr_fast.serve.run import serve

__all__ = ["ServeOptions", "create_app", "serve"]
