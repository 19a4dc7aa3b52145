"""What a measurement must say about where it was made."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from detr_fast import extension

PACKAGES = (
    "detr_fast",
    "torch",
    "triton",
    "numpy",
    "scipy",
    "torch-ms-deform-attn",
    "lap",
    "lapx",
    "py-lap-solver",
)


def describe_machine() -> dict[str, Any]:
    """Device, CPU, threads, instruction set, OpenMP runtimes, versions, commit and date.

    Call it after the timings: only then are the OpenMP runtimes of all peers in the process.
    """
    module = extension.extension() if extension.why_not() is None else None
    return {
        "device": "cpu",
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "isa": module.isa() if module else None,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "openmp_runtimes": openmp_runtimes(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def openmp_runtimes() -> list[str]:
    """The OpenMP runtimes mapped into this process, as `folder/file`; empty where this cannot be told.

    Two of them keep two thread pools, and the one that has just worked spins on the other's cores.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/")}
    names = ("libgomp", "libomp", "libiomp5")
    return sorted(f"{p.parent.name}/{p.name}" for p in paths if p.name.split("-")[0].split(".")[0] in names)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Sets `torch.set_num_threads(threads)` inside a `with` block and restores what it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_has_bfloat16() -> bool | None:
    """Whether the CPU multiplies bfloat16 itself (AVX-512 BF16, AMX, Arm's); None where it does not say."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    if flags is None:
        return None
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(key: str) -> str | None:
    """What Linux says about the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _versions() -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}


def commit() -> str | None:
    """The commit of the checkout that this package runs from, `-dirty` with local changes.

    Elsewhere the one that DETR_FAST_COMMIT names, or None.
    """
    root = Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return os.environ.get("DETR_FAST_COMMIT")
    command = [git, "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
