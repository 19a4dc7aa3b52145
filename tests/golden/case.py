"""Golden cases: what official implementations return for weights and images made from names and shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.data.seeded import seeded_image, seeded_state_dict
from tests.paths import MORE_GOLDEN

DIRECTORIES = (Path(__file__).parent / "data", *([MORE_GOLDEN] if MORE_GOLDEN else []))
# of a case found in both, the one that DETR_FAST_GOLDEN names counts
FILES = {path.stem: path for directory in DIRECTORIES for path in sorted(directory.glob("*.json"))}


class Case:
    """One case: `notes` from its json file, arrays from its npz file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: dict[str, Any] = json.loads(FILES[name].read_text())
        self._arrays = np.load(FILES[name].with_suffix(".npz"))

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
        arrays = seeded_state_dict(self.notes["state_dict_shapes"])
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if scaled:
            for name, factor in self.config["weight_scale"].items():
                state[name] *= np.float32(factor)
        return state

    def images(self) -> list[Tensor]:
        """The images, [3, H, W] each, unpadded."""
        return [torch.from_numpy(seeded_image(*image)) for image in self.notes["images"]]


@cache
def load(name: str) -> Case:
    return Case(name)


def find(wanted: Callable[[Mapping[str, Any]], bool], groups: tuple[str, ...] = ("",)) -> list[Any]:
    """pytest parameters (case name, group) of the cases that `wanted` accepts by their json.

    A group is a prefix of array names; a case takes part in the groups of which it has arrays.
    """
    return [
        pytest.param(name, group, id=f"golden-{name}-{group.rstrip('/') or 'plain'}")
        for name in sorted(FILES)
        if wanted(load(name).notes)
        for group in groups
        if load(name).names(group)
    ]


def find_arrays(end: str) -> list[Any]:
    """pytest parameters (case name, group) of every array called `<group>/<end>`."""
    return [
        pytest.param(name, array.removesuffix(f"/{end}"), id=f"golden-{name}-{array}")
        for name in sorted(FILES)
        for array in load(name).names("")
        if array.endswith(f"/{end}")
    ]
