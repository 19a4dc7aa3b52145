"""The packages of extras, which data, training, the command line and exports need and operators do not."""

from __future__ import annotations

MODULES = {
    "train": {"PIL", "matplotlib", "pycocotools", "scipy", "tensorboard", "tqdm", "typer", "yaml"},
    "export": {"onnx", "onnxruntime", "onnxscript", "openvino"},
}


def explain_missing(error: ImportError) -> str:
    """A line that says what to install where a module of the extra is missing; other errors as they are."""
    module = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in MODULES.items() if module in modules), None)
    if extra is None:
        return str(error)
    return f"{module} is not installed; `pip install 'detr_fast[{extra}]'` brings it"
