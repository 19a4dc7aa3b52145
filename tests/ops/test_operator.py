"""The choice of a backend, pins and reasons, on an operator made for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from detr_fast.ops import BackendUnavailable, use_backend
from detr_fast.ops.operator import Backend, Operator, parse_pins

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
KERNEL, REFERENCE = ModuleType("cpu"), ModuleType("reference")


@pytest.fixture
def operator() -> Operator:
    return Operator(
        "toy",
        Backend("reference", REFERENCE, lambda device, dtype: None),
        Backend("cpu", KERNEL, lambda device, dtype: None if dtype == F32 else f"takes float32; got {dtype}"),
    )


def test_takes_the_first_backend_that_can(operator: Operator) -> None:
    assert operator.select(CPU, F32) is KERNEL
    assert operator.select(CPU, F64) is REFERENCE


def test_explains_every_backend(operator: Operator) -> None:
    reasons = operator.explain(CPU, F64)
    assert list(reasons) == ["cuda", "triton", "cpu", "reference"]
    assert reasons["cpu"] == "takes float32; got torch.float64"
    assert reasons["reference"] is None
    assert "toy has no cuda backend" in str(reasons["cuda"])


def test_a_pin_never_falls_back(operator: Operator) -> None:
    assert operator.select(CPU, F32, "reference") is REFERENCE
    with pytest.raises(BackendUnavailable, match=r"toy on cpu with torch.float64: cpu: takes float32"):
        operator.select(CPU, F64, "cpu")
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match="takes float32"):
        operator.select(CPU, F64)


def test_pins_nest_and_end(operator: Operator) -> None:
    with use_backend(toy="reference"):
        assert operator.select(CPU, F32) is REFERENCE
        with use_backend("cpu"):
            assert operator.select(CPU, F32) is KERNEL
            assert operator.select(CPU, F32, "reference") is REFERENCE
        assert operator.select(CPU, F32) is REFERENCE
    with pytest.raises(RuntimeError, match="inside"), use_backend("reference"):
        raise RuntimeError("inside")
    assert operator.select(CPU, F32) is KERNEL


def test_unknown_names_are_refused(operator: Operator) -> None:
    with pytest.raises(ValueError, match="expected one of cuda, triton, cpu, reference; got 'fast'"):
        operator.select(CPU, F32, "fast")
    with pytest.raises(ValueError, match="got 'fast'"), use_backend(toy="fast"):
        pass
    with (
        pytest.raises(ValueError, match=r"operator: expected one of .*toy.*; got 'tyo'"),
        use_backend(tyo="cpu"),
    ):
        pass


def test_the_former_name_of_the_cpu_backend_is_understood(operator: Operator) -> None:
    assert operator.select(CPU, F32, "native") is KERNEL
    with use_backend("native"):
        assert operator.select(CPU, F32) is KERNEL
        with pytest.raises(BackendUnavailable, match="takes float32"):
            operator.select(CPU, F64)


def test_the_choice_sees_shapes() -> None:
    small = ModuleType("small")
    few = Backend("cpu", small, why_not_shape=lambda levels: None if levels <= 8 else "takes 8 levels")
    operator = Operator("toy", few, Backend("reference", REFERENCE))
    assert operator.select(CPU, F32, shape_key=8) is small
    assert operator.select(CPU, F32, shape_key=9) is REFERENCE
    with pytest.raises(BackendUnavailable, match="cpu: takes 8 levels"):
        operator.select(CPU, F32, "cpu", shape_key=9)


@pytest.mark.parametrize("pins", ["ms_deform_atn=cpu", "cuda,box_loss=fast"])
def test_a_wrong_environment_variable_stops_the_import(pins: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import detr_fast.ops"],
        env={**os.environ, "DETR_FAST_BACKEND": pins},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "expected one of" in run.stderr.splitlines()[-1]


def test_environment_variable_syntax() -> None:
    assert parse_pins("") == {}
    assert parse_pins("reference") == {"*": "reference"}
    assert parse_pins(" a=native, b = reference ,") == {"a": "cpu", "b": "reference"}
    with pytest.raises(ValueError, match="got 'nativ'"):
        parse_pins("a=nativ")
