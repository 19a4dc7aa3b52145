"""What the compiled CUDA kernels ask of the hardware, read from the machine code in the extension."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.machine_code import (
    Kernel,
    describe_build,
    find_tool,
    operators_of_kernels,
    read_kernels,
    resident_warps,
)
from benchmarks.resources import report
from detr_fast.extension import extension
from tests.paths import ROOT

C = extension()
BINARY = Path(str(C.__file__))
NO_TOOL = (
    None
    if find_tool("cuobjdump")
    else "no cuobjdump: install a CUDA toolkit, triton or nvidia-cuda-cuobjdump"
)
WHY_NOT = NO_TOOL if C.with_cuda else f"the extension has no CUDA code: {C.why_not_cuda}"
BUILD = {"machine_code": ["none"]} if WHY_NOT else describe_build(BINARY)
OPERATORS = sorted({path.parent.name for path in (ROOT / "csrc").glob("*/cuda.cu")})
needs_cuda_build = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
each_architecture = pytest.mark.parametrize("architecture", BUILD["machine_code"])
each_operator = pytest.mark.parametrize("operator", OPERATORS)


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return read_kernels(BINARY)


@needs_cuda_build
@each_architecture
@each_operator
def test_resource_no_spills_and_no_local_arrays(
    kernels: list[Kernel], operator: str, architecture: str
) -> None:
    found = _select(kernels, operator, architecture)
    assert [kernel for kernel in found if kernel.stack_bytes or kernel.local_accesses] == []


@needs_cuda_build
@each_architecture
@each_operator
def test_resource_addresses_are_known_to_be_global(
    kernels: list[Kernel], operator: str, architecture: str
) -> None:
    """Else an atomic sum becomes one that returns, beside a loop for the case of shared memory."""
    found = _select(kernels, operator, architecture)
    assert [kernel for kernel in found if kernel.generic_accesses] == []


@needs_cuda_build
@each_architecture
@each_operator
def test_resource_a_block_of_the_launch_bound_fits(
    kernels: list[Kernel], operator: str, architecture: str
) -> None:
    for kernel in _select(kernels, operator, architecture):
        assert 0 < kernel.threads <= 1024, f"no launch bound: {kernel}"
        limit = min(255, 65536 // kernel.threads // 8 * 8)
        assert kernel.registers <= limit, kernel
        assert kernel.warps_per_sm is None or kernel.warps_per_sm >= kernel.threads // 32, kernel


@needs_cuda_build
@each_architecture
@pytest.mark.parametrize("step", ["forward", "backward"])
@pytest.mark.parametrize("operator", ["ms_deform_attn"])
def test_resource_fast_path_moves_128_bits(
    kernels: list[Kernel], operator: str, step: str, architecture: str
) -> None:
    """The four corners of a sample come in 128-bit loads; sums into grad_value leave so where sm_90 can."""
    found = {kernel.name: kernel for kernel in _select(kernels, operator, architecture)}
    for channels in ("float, 4", "BFloat16, 8", "Half, 8"):
        for fused in ("false", "true"):
            kernel = found[f"{step}_kernel<{channels}, {fused}>"]
            assert kernel.wide_loads >= 4, kernel
            if step == "backward" and int(architecture.removeprefix("sm_")) >= 90:
                assert kernel.reduce_bits == 128, kernel


@needs_cuda_build
@each_architecture
def test_resource_a_search_has_many_loads_on_their_way(kernels: list[Kernel], architecture: str) -> None:
    """The search for a free column reads eight costs and their owners at once: it is a chain of latencies."""
    for kernel in _select(kernels, "linear_assignment", architecture):
        assert kernel.loads_in_flight > 12, kernel  # bids alone have 8; the first of 16 may be used early


@needs_cuda_build
@each_architecture
def test_resource_all_kernels_of_csrc_are_there(kernels: list[Kernel], architecture: str) -> None:
    """A kernel in the report belongs to an operator, and no kernel in the sources is missing from it."""
    found = {(k.operator, k.name.split("<")[0]) for k in kernels if k.architecture == architecture}
    assert found == {(operator, name) for name, operator in operators_of_kernels().items()}


@needs_cuda_build
def test_resource_architectures_are_those_asked_for() -> None:
    """`90-real` is machine code, `90-virtual` PTX, `90` both; the default has PTX for the newest only."""
    asked = C.cuda_info()["architectures"].split()
    if not all(re.fullmatch(r"\d+[af]?(-real|-virtual)?", name) for name in asked):
        pytest.skip(f"CMake chose the architectures of {asked}")
    numbers = {name: re.findall(r"\d+", name)[0] for name in asked}
    assert BUILD["machine_code"] == [f"sm_{numbers[name]}" for name in asked if not name.endswith("-virtual")]
    assert BUILD["ptx"] == [f"sm_{numbers[name]}" for name in asked if not name.endswith("-real")]


@needs_cuda_build
def test_resource_report_has_a_row_for_each_kernel(kernels: list[Kernel]) -> None:
    text = report(BUILD, kernels)
    names = {(kernel.operator, kernel.name) for kernel in kernels}
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) == len(names)
    for operator, name in names:
        assert f"## {operator}\n" in text
        assert f"| `{name}` |" in text


SPILLING = """
template <int Count>
__global__ void __launch_bounds__(1024) spills(const float4* x, float4* y, int n) {
    float4 all[Count];
#pragma unroll
    for (int k = 0; k < Count; ++k) all[k] = x[k * n + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < Count; ++k) y[k * n + threadIdx.x] = all[Count - 1 - k];
}
__global__ void __launch_bounds__(64) indexes(const float* x, float* y, int n) {
    __shared__ float staged[64];
    float all[32];
    for (int k = 0; k < n; ++k) all[k & 31] = x[k];
    staged[threadIdx.x] = all[n & 31];
    __syncthreads();
    atomicAdd(y, staged[n & 63]);
}
void launch(const float4* x, float4* y) { spills<64><<<1, 1024>>>(x, y, 1); }
"""


@pytest.mark.skipif(NO_TOOL is not None, reason=str(NO_TOOL))
def test_resource_spills_and_local_arrays_are_seen(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    source, cubin = tmp_path / "spills.cu", tmp_path / "spills.sm_80.cubin"
    source.write_text(SPILLING)
    subprocess.run([nvcc, "-arch=sm_80", "-cubin", "-o", cubin, source], check=True, capture_output=True)
    indexes, spills = read_kernels(cubin)
    assert (spills.name, spills.threads, spills.load_bits, spills.reduce_bits) == ("spills<64>", 1024, 128, 0)
    assert spills.stack_bytes > 0
    assert spills.local_accesses > 0
    assert (indexes.name, indexes.threads, indexes.load_bits, indexes.reduce_bits) == ("indexes", 64, 32, 32)
    assert (indexes.stack_bytes, indexes.shared_bytes) == (128, 256)
    assert indexes.local_accesses > 0


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "warps"),
    [
        ("sm_80", 256, 32, 0, 64),  # all
        ("sm_80", 256, 33, 0, 48),  # 65536 / (40 * 32) = 51 warps: 48 in four partitions, six blocks
        ("sm_90", 128, 255, 0, 8),  # registers
        ("sm_86", 32, 16, 0, 16),  # 16 blocks
        ("sm_75", 64, 16, 32768, 4),  # two blocks' shared memory
        ("sm_80", 64, 16, 40 * 1024, 8),  # 41 KiB with the system's share: four blocks in 164 KiB
        ("sm_999", 64, 16, 0, None),
    ],
)
def test_resource_resident_warps(
    architecture: str, threads: int, registers: int, shared: int, warps: int | None
) -> None:
    assert resident_warps(architecture, threads, registers, shared) == warps


def _select(kernels: list[Kernel], operator: str, architecture: str) -> list[Kernel]:
    found = [k for k in kernels if (k.operator, k.architecture) == (operator, architecture)]
    assert found, f"no kernel of {operator} for {architecture}"
    return found
