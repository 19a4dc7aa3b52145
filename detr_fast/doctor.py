"""What serves what on this machine, and why the rest does not."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from detr_fast import extension
from detr_fast.machine import describe_machine
from detr_fast.ops import OPERATORS


def diagnose() -> Iterator[str]:
    """Lines of plain text: versions, the machine, the extension, then each operator on each device."""
    machine = describe_machine()
    yield "versions"
    for package in ("detr_fast", "torch", "numpy", "scipy", "pycocotools", "triton"):
        yield f"  {package:12} {_version(package)}"
    yield f"  {'python':12} {machine['versions']['python']}"
    yield "machine"
    yield f"  cpu          {machine['cpu']} ({machine['architecture']}, {machine['cores']} cores)"
    yield f"  threads      {torch.get_num_threads()} (torch.get_num_threads)"
    yield f"  cuda         {_cuda_devices()}"
    yield "compiled extension"
    reason = extension.why_not()
    if reason is not None:
        yield f"  missing: {reason}"
    else:
        module = extension.extension()
        yield f"  instructions {module.isa()} (torch: {machine['torch_isa']})"
        yield f"  cuda         {_compiled_cuda(module)}"
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for operator in OPERATORS:
        for device in [torch.device("cpu"), *(gpus or [torch.device("cuda")])]:
            is_here = bool(gpus) or device.type == "cpu"
            yield f"{operator.name} on {device}, float32{'' if is_here else ': no such device'}"
            served = False
            for backend, why_not in operator.explain(device, torch.float32).items():
                if why_not is not None:
                    yield f"  {backend:12} no: {why_not}"
                elif is_here:
                    yield f"  {backend:12} {'can serve' if served else 'serves'}"
                    served = True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no device" if built else "no device, and this torch is built without CUDA"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _compiled_cuda(module: ModuleType) -> str:
    if not module.with_cuda:
        return f"not compiled in: {module.why_not_cuda}"
    info = module.cuda_info()
    runtime = f"{info['runtime_version'] // 1000}.{info['runtime_version'] % 1000 // 10}"
    state = info["error"] or f"{info['device_count']} devices"
    return f"runtime {runtime} for sm {info['architectures']}; {state}"
