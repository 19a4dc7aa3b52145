"""The choice of a backend, pins and reasons, on an operator made for the test."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from detr_fast.ops import BackendUnavailable, use_backend
from detr_fast.ops.backend import Backend, Operator, parse_pins

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
NATIVE, REFERENCE = ModuleType("native"), ModuleType("reference")


@pytest.fixture
def operator() -> Operator:
    return Operator(
        "toy",
        Backend("reference", REFERENCE, lambda device, dtype: None),
        Backend(
            "native", NATIVE, lambda device, dtype: None if dtype == F32 else f"takes float32; got {dtype}"
        ),
    )


def test_takes_the_first_backend_that_can(operator: Operator) -> None:
    assert operator.select(CPU, F32) is NATIVE
    assert operator.select(CPU, F64) is REFERENCE


def test_explains_every_backend(operator: Operator) -> None:
    reasons = operator.explain(CPU, F64)
    assert list(reasons) == ["cuda", "triton", "native", "reference"]
    assert reasons["native"] == "takes float32; got torch.float64"
    assert reasons["reference"] is None
    assert "toy has no cuda backend" in str(reasons["cuda"])


def test_a_pin_never_falls_back(operator: Operator) -> None:
    assert operator.select(CPU, F32, "reference") is REFERENCE
    with pytest.raises(BackendUnavailable, match=r"toy on cpu with torch.float64: native: takes float32"):
        operator.select(CPU, F64, "native")
    with use_backend("native"), pytest.raises(BackendUnavailable, match="takes float32"):
        operator.select(CPU, F64)


def test_pins_nest_and_end(operator: Operator) -> None:
    with use_backend(toy="reference"):
        assert operator.select(CPU, F32) is REFERENCE
        with use_backend("native"):
            assert operator.select(CPU, F32) is NATIVE
            assert operator.select(CPU, F32, "reference") is REFERENCE
        assert operator.select(CPU, F32) is REFERENCE
    with pytest.raises(RuntimeError, match="inside"), use_backend("reference"):
        raise RuntimeError("inside")
    assert operator.select(CPU, F32) is NATIVE


def test_unknown_names_are_refused(operator: Operator) -> None:
    with pytest.raises(ValueError, match="expected one of cuda, triton, native, reference; got 'fast'"):
        operator.select(CPU, F32, "fast")
    with pytest.raises(ValueError, match="got 'fast'"), use_backend(toy="fast"):
        pass


def test_environment_variable_syntax() -> None:
    assert parse_pins("") == {}
    assert parse_pins("reference") == {"*": "reference"}
    assert parse_pins(" a=native, b = reference ,") == {"a": "native", "b": "reference"}
    with pytest.raises(ValueError, match="got 'nativ'"):
        parse_pins("a=nativ")
