"""The compiled extension beside torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from detr_fast.extension import extension, why_not

C = extension()


def test_imports() -> None:
    assert why_not() is None
    assert C.isas() == ["baseline", "avx2", "avx512"][: len(C.isas())]
    assert C.isa() in C.isas()


def test_instruction_set_can_be_restricted() -> None:
    before = C.isa()
    C.set_isa("baseline")
    assert C.isa() == "baseline"
    C.set_isa(before)
    with pytest.raises(ValueError, match="isa: expected baseline, avx2 or avx512; got sse"):
        C.set_isa("sse")
    assert _isa_asked_for("baseline").stdout.strip() == "baseline"


def test_unknown_instruction_set_in_the_environment_is_refused() -> None:
    refused = _isa_asked_for("avx1024")
    assert refused.returncode != 0
    expected = "ValueError: DETR_FAST_ISA: expected baseline, avx2 or avx512; got avx1024"
    assert refused.stderr.strip().endswith(expected)


def _isa_asked_for(name: str) -> subprocess.CompletedProcess[str]:
    code = "from detr_fast.extension import extension; print(extension().isa())"
    environment = {**os.environ, "DETR_FAST_ISA": name}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_links_no_torch_no_cuda_and_no_openmp_library() -> None:
    """One build serves every torch version, imports without a driver and brings no threads that spin."""
    listing = subprocess.run(["ldd", C.__file__], capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"ldd cannot list this module: {listing.stderr.strip()}")
    libraries = [line.split()[0] for line in listing.stdout.splitlines()]  # without their addresses
    for name in ("torch", "c10", "cudart", "libcuda", "omp"):
        assert not [library for library in libraries if name in library]


@pytest.mark.skipif(not C.with_cuda, reason="built without CUDA")
def test_cuda_build_reports_itself() -> None:
    info = C.cuda_info()
    assert info["runtime_version"] >= 11000
    assert info["architectures"]
    assert (info["device_count"] > 0) == (info["error"] is None)
