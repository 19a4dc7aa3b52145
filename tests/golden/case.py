"""Golden cases: what official implementations return for weights and images made from names and shapes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.paths import GOLDEN, GOLDEN_REASON


class Case:
    """One case: `notes` from its json file, arrays from its npz file."""

    def __init__(self, name: str) -> None:
        assert GOLDEN is not None
        self.name = name
        self.notes: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        self._arrays = np.load(GOLDEN / f"{name}.npz")

    @property
    def config(self) -> dict[str, Any]:
        return self.notes["config"]

    def __contains__(self, array: str) -> bool:
        return array in self._arrays.files

    def __getitem__(self, array: str) -> Tensor:
        return torch.from_numpy(np.array(self._arrays[array]))

    def bits(self, array: str) -> Tensor:
        """A bool tensor stored as `<array>_packed` bits and `<array>_shape`."""
        shape = self._arrays[f"{array}_shape"]
        bits = np.unpackbits(self._arrays[f"{array}_packed"])[: shape.prod()]
        return torch.from_numpy(bits.reshape(shape)).bool()

    def names(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of the arrays that start with it."""
        return [name[len(prefix) :] for name in self._arrays.files if name.startswith(prefix)]

    def state_dict(self, scaled: bool = False) -> dict[str, Tensor]:
        """The stand-in weights; `scaled` multiplies the entries named in the config first."""
        arrays = seeded().seeded_state_dict(self.notes["state_dict_shapes"])
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if scaled:
            for name, factor in self.config["weight_scale"].items():
                state[name] *= np.float32(factor)
        return state

    def images(self) -> list[Tensor]:
        """The images, [3, H, W] each, unpadded."""
        return [torch.from_numpy(seeded().seeded_image(*image)) for image in self.notes["images"]]


@cache
def load(name: str) -> Case:
    return Case(name)


def find(wanted: Callable[[Mapping[str, Any]], bool], groups: tuple[str, ...] = ("",)) -> list[Any]:
    """pytest parameters (case name, group) of the cases that `wanted` accepts by their json.

    A group is a prefix of array names; a case takes part in the groups of which it has arrays. Without golden
    data there is one parameter, skipped.
    """
    if GOLDEN is None:
        return [pytest.param("", "", id="golden", marks=pytest.mark.skip(reason=GOLDEN_REASON))]
    cases = [load(path.stem) for path in sorted(GOLDEN.glob("*.json"))]
    return [
        pytest.param(case.name, group, id=f"golden-{case.name}-{group.rstrip('/') or 'plain'}")
        for case in cases
        if wanted(case.notes)
        for group in groups
        if case.names(group)
    ]


@cache
def seeded() -> ModuleType:
    assert GOLDEN is not None
    spec = importlib.util.spec_from_file_location("detr_fast_golden_seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
