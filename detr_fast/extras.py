"""The packages of extras, which operators and models do without: of data, training, commands, exports."""

from __future__ import annotations

EXTRAS = {
    "train": {
        "PIL",
        "hotcoco",
        "matplotlib",
        "msgspec",
        "pycocotools",
        "scipy",
        "tensorboard",
        "tqdm",
        "typer",
        "yaml",
    },
    "export": {"onnx", "onnxruntime", "onnxscript", "openvino", "safetensors"},
    "video": {"av"},
    "serve": {"starlette", "uvicorn", "python_multipart", "prometheus_client"},
}


def extra_of(error: ImportError) -> str | None:
    """The extra that brings the missing module; None for other modules."""
    module = (error.name or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def explain_missing(error: ImportError) -> str:
    """A line that says what to install where a module of an extra is missing; other errors as they are."""
    extra = extra_of(error)
    if extra is None:
        return str(error)
    module = (error.name or "").partition(".")[0]
    return f"{module} is not installed; `pip install 'detr_fast[{extra}]'` brings it"
