"""The solvers of batches on a GPU that people use: torch-linear-assignment's and birder's."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.suite import Call, Contender, import_peer

TORCH_LINEAR_ASSIGNMENT, BIRDER = "torch-linear-assignment", "birder"
Solver = Callable[[Tensor], Tensor]  # [problems, T, Q] costs -> query of each target [problems, T]


def gpu_solvers(
    prefix: str,
    prepare: Callable[[Solver, Any, str], Call],
    canonical: Callable[[Any, Any], Any],
    device: torch.device,
) -> list[Contender]:
    """The peers that solve a batch on the device, each in what `prepare` makes of its solver."""
    module, missing = import_peer("torch_linear_assignment")
    birder: Any = None
    reason: str | None = "needs a CUDA device"
    if device.type == "cuda":
        birder, reason = birder_operator()
    else:
        missing = missing or reason

    def by_birder(costs: Tensor) -> Tensor:
        query: Tensor = birder(costs)[0]
        return query

    def by_torch_linear_assignment(costs: Tensor) -> Tensor:
        query: Tensor = module.batch_linear_assignment(costs)
        return query

    return [
        Contender(
            prefix + TORCH_LINEAR_ASSIGNMENT,
            functools.partial(prepare, by_torch_linear_assignment),
            canonical,
            missing=missing,
            waits=True,
        ),
        Contender(prefix + BIRDER, functools.partial(prepare, by_birder), canonical, missing=reason),
    ]


@functools.cache
def birder_operator() -> tuple[Any, str | None]:
    """birder's CUDA solver, compiled from the package's sources as birder does, or why there is none.

    The package itself is not imported: it needs a dozen others that the kernel has no use for.
    """
    package = importlib.util.find_spec("birder")
    if package is None or not package.submodule_search_locations:
        return None, "No module named 'birder'"
    folder = Path(package.submodule_search_locations[0]) / "kernels" / "linear_assignment"
    try:
        from torch.utils.cpp_extension import get_default_build_root, load

        build = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "birder_assignment"
        build.mkdir(parents=True, exist_ok=True)
        if (build / "lock").exists():  # `load` would wait for it for ever
            return None, f"is being compiled, or its compilation was stopped: {build.name}/lock"
        load(
            "linear_assignment",
            [str(folder / "op.cpp"), str(folder / "linear_assignment_cuda.cu")],
            extra_cflags=["-O3"],
            extra_cuda_cflags=["-O3", "--restrict"],
            build_directory=str(build),
            with_cuda=True,
            is_python_module=False,
        )
        return torch.ops.linear_assignment.batch_linear_assignment, None
    except Exception as error:  # of a compiler, a linker or a loader
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
