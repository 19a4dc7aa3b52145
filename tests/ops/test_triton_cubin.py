"""Every Triton kernel compiles for the GPUs of today, spills nothing and loads 128 bits at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.ops.triton_cubins import CALLS
from tests.paths import ROOT

ARCHITECTURES = (80, 90, 100)
# bytes of stack: ptxas saves two registers there to fit one block more on an SM
SPILLS = {
    ("ms_deform_attn-channels_20", 80): 8,
    ("ms_deform_attn_fused-encoder_autocast", 100): 8,
    ("class_loss-varifocal", 90): 8,  # a frame without loads or stores
    ("ms_deform_attn_fused-ragged", 90): 8,
    ("ms_deform_attn_fused-ragged", 100): 8,
}


def _why_not() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 6):
        return f"compiling without a GPU is written for triton 3.6 and later; this is {version}"
    return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


@pytest.fixture(scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each architecture, the kernels of each call; compiled afresh, two architectures at a time."""
    cache = tmp_path_factory.mktemp("triton")

    def run(architecture: int) -> dict[str, dict[str, Any]]:
        # this process interprets Triton kernels, so others compile them
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
        command = [sys.executable, "-m", "tests.ops.triton_cubins", str(architecture)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return {row["call"]: row for row in map(json.loads, done.stdout.splitlines())}

    with ThreadPoolExecutor(2) as pool:
        yield {architecture: pool.submit(run, architecture) for architecture in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("call", [pytest.param(name, id=f"{name}-triton-cubin") for name in CALLS])
def test_cubins(
    call: str, architecture: int, compilations: dict[int, Future[dict[str, dict[str, Any]]]]
) -> None:
    result = compilations[architecture].result()[call]
    assert "error" not in result, result["error"]
    assert result["kernels"]
    for kernel in result["kernels"]:
        allowed = SPILLS.get((call, architecture), 0)
        assert kernel["stack"] + kernel["local"] <= allowed, f"spills or local arrays: {kernel}"
        if not call.startswith("ms_deform_attn"):
            continue
        if kernel["kernel"] in ("forward_kernel", "backward_kernel", "gather_kernel"):
            # four corners' pixels, or grad_out's rows; without dot products a backward reads no pixels
            least = 0 if call.endswith("only_value") else 2 if kernel["kernel"] == "gather_kernel" else 4
            least = 4 if kernel["kernel"] == "forward_kernel" else least
            assert kernel["wide_loads"] >= least, f"value is not read 16 bytes at a time: {kernel}"
        if kernel["kernel"] == "backward_kernel" and architecture >= 90:
            wanted = 0 if call.endswith("frozen_value") else 4
            assert kernel["wide_sums"] >= wanted, f"grad_value is not summed four floats at a time: {kernel}"
