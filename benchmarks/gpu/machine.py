"""What a GPU result must say about where it was measured."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

CLOCKS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw")


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Name, architecture and sizes of the GPU, and torch's CUDA; {} for another device."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": properties.total_memory,
        "torch_cuda": torch.version.cuda,
    }


def read_clocks() -> dict[str, str]:
    """Driver, clocks (MHz) and power (W) as nvidia-smi reads them now; {} where it is missing."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    command = [smi, f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = (done.stdout.splitlines() or [""])[0].split(", ")
    return dict(zip(CLOCKS, values, strict=True)) if len(values) == len(CLOCKS) else {}
