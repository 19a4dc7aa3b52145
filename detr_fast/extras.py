"""The packages of the extra `train`, which data, training and the command line need and operators do not."""

from __future__ import annotations

MODULES = {"PIL", "matplotlib", "pycocotools", "scipy", "tensorboard", "tqdm", "typer", "yaml"}


def explain_missing(error: ImportError) -> str:
    """A line that says what to install where a module of the extra is missing; other errors as they are."""
    module = (error.name or "").partition(".")[0]
    if module not in MODULES:
        return str(error)
    return f"{module} is not installed; `pip install 'detr_fast[train]'` brings it"
