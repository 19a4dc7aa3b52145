"""Fixtures of operators' own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from detr_fast.extension import extension
from tests.ops.simulated import simulated


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The module's OPERATOR's backend to pin; a simulated one stands for what it simulates."""
    operator = request.module.OPERATOR
    if operator.explain(torch.device("cpu"), torch.float32).get(request.param, "simulated") is None:
        yield request.param
    else:
        with simulated(operator, request.param) as name:
            yield name


@pytest.fixture(params=extension().isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    before = extension().isa()
    extension().set_isa(request.param)
    yield request.param
    extension().set_isa(before)
