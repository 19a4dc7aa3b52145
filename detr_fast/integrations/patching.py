"""Accelerating what a script builds of a library's classes, and the functions of that library, everywhere.

A patch looks through the modules that have been imported, imports none, and takes a class or a function for
what its name says only after the checks that `accelerate` makes.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.integrations import assigner, official_matcher
from detr_fast.integrations import ms_deform_attn as extension
from detr_fast.integrations.accelerate import Report, accelerate
from detr_fast.integrations.attention_forms import FORMS, random
from detr_fast.integrations.swap import argument_names
from detr_fast.ops import ms_deform_attn

CORES = (
    "ms_deform_attn_core_pytorch",
    "multi_scale_deformable_attn_pytorch",
    "deformable_attention_core_func",
)
_CORE_ARGUMENTS = ["value", "value_spatial_shapes", "sampling_locations", "attention_weights"]
_APPLY_ARGUMENTS = [
    "value",
    "value_spatial_shapes",
    "value_level_start_index",
    "sampling_locations",
    "attention_weights",
    "im2col_step",
]
_TOLERANCE = 1e-4  # of the largest, in float32


class Patch:
    """What `patch` changes of one library, and how it is undone.

    Args:
        library: its name, for the report.
        packages: whose modules are looked through; none: all but transformers' and ours, for code that is run
            from a checkout and has no package name of its own.
    """

    def __init__(self, library: str, *packages: str) -> None:
        self.library = library
        self.packages = packages
        self._originals: list[tuple[Any, str, Any]] = []

    def patch(self) -> Report:
        """Accelerates every instance of the library's classes that is built from now on, and its functions.

        Instances that exist stay as they are: `accelerate` is for them. A second call looks for what has
        been imported since.

        Returns:
            What was replaced and what was left alone, and why.

        Raises:
            RuntimeError: nothing of the library that we know has been imported.
        """
        report = Report(self.library)
        for module in self._modules():
            for name, value in list(vars(module).items()):
                if name in CORES or name in extension.FUNCTIONS:
                    self._patch_function(module, name, value, report)
                elif _known(name) and _defines(module, value):
                    self._patch_class(f"{module.__name__}.{name}", value, report)
        if not report.replaced and not report.skipped:
            raise RuntimeError(f"nothing of {self.library} that we know has been imported: import it before")
        return report

    def unpatch(self) -> None:
        """Undoes `patch`; does nothing without one. What was built under it stays accelerated."""
        for place, name, original in reversed(self._originals):
            setattr(place, name, original)
        self._originals.clear()

    @contextmanager
    def patched(self) -> Iterator[Report]:
        """`patch` for the length of a block."""
        before = len(self._originals)
        report = self.patch()
        try:
            yield report
        finally:
            added = self._originals[before:]
            del self._originals[before:]
            for place, name, original in reversed(added):
                setattr(place, name, original)

    def _modules(self) -> Iterator[ModuleType]:
        for name, module in list(sys.modules.items()):
            package = name.partition(".")[0]
            ours = package in self.packages if self.packages else package not in ("transformers", "detr_fast")
            if ours and isinstance(module, ModuleType):
                yield module

    def _set(self, place: Any, name: str, value: Any) -> None:
        self._originals.append((place, name, vars(place)[name]))
        setattr(place, name, value)

    def _patch_class(self, path: str, found: Any, report: Report) -> None:
        init = vars(found).get("__init__")
        if init is None:
            report.skipped.append((path, "it has no __init__ of its own"))
        elif hasattr(init, "_detr_fast"):
            report.skipped.append((path, "already accelerated"))
        else:
            self._set(found, "__init__", _accelerating(init))
            report.replaced.append((path, "accelerated as it is built"))

    def _patch_function(self, module: ModuleType, name: str, found: Any, report: Report) -> None:
        path = f"{module.__name__}.{name}"
        if found is extension.MSDeformAttnFunction or hasattr(found, "_detr_fast"):
            report.skipped.append((path, "already accelerated"))
            return
        chosen = _core(found) if name in CORES else _apply(found)
        if isinstance(chosen, str):
            report.skipped.append((path, chosen))
        else:
            self._set(module, name, chosen)
            report.replaced.append((path, "deformable attention"))


def _known(name: str) -> bool:
    """Whether something bears the name of a class that `accelerate` replaces."""
    names = (assigner.NAME, official_matcher.NAME)
    return name in names or "Criterion" in name or any(form.named(name) for form in FORMS)


def _defines(module: ModuleType, value: Any) -> bool:
    """Whether a module is where a class comes from, and that is one of modules or of assigners."""
    if not inspect.isclass(value) or value.__module__ != module.__name__:
        return False
    if "Criterion" in value.__name__:
        return issubclass(value, nn.Module) and argument_names(value.forward)[:2] == ["outputs", "targets"]
    return issubclass(value, nn.Module) or value.__name__ == assigner.NAME


def _accelerating(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that ends with `accelerate`."""

    @functools.wraps(init)
    def built(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is not built:
            return  # a subclass, which is not built yet
        if isinstance(self, nn.Module):
            accelerate(self, strict=False)
        elif isinstance(chosen := assigner.choose(self), type):
            self.__class__ = chosen

    built._detr_fast = True  # type: ignore[attr-defined]
    return built


def _apply(found: Any) -> Any:
    """What takes the place of a compiled `torch.autograd.Function`, or why nothing does."""
    names = argument_names(found.forward) if hasattr(found, "forward") else []
    if len(names) != len(_APPLY_ARGUMENTS):
        return f"unknown signature: expected ({', '.join(_APPLY_ARGUMENTS)}); got ({', '.join(names)})"
    return extension.MSDeformAttnFunction


def _core(found: Callable[..., Tensor]) -> Callable[..., Tensor] | str:
    """What takes the place of a function that samples by PyTorch, or why nothing does."""
    names = list(inspect.signature(found).parameters)
    if names[:4] != _CORE_ARGUMENTS or len(names) > 5:
        return f"unknown signature: expected ({', '.join(_CORE_ARGUMENTS)}); got ({', '.join(names)})"
    shapes = torch.tensor([[3, 4], [2, 3]])
    value, locations = random(2, 18, 2, 5), random(2, 3, 2, 2, 3, 2) * 1.4 - 0.2
    weights = random(2, 3, 2, 2, 3, seed=1)
    wanted = ms_deform_attn(value, shapes, locations, weights)
    for channels_first in (False, True):
        given = value.permute(0, 2, 3, 1).contiguous() if channels_first else value
        try:
            error = (found(given, shapes, locations, weights) - wanted).abs().max()
        except Exception:  # of the other layout, the shapes do not fit
            continue
        if error <= _TOLERANCE * wanted.abs().max():
            return _sampling(found, channels_first)
    return "on a random input its result is not that of multi-scale deformable attention"


def _sampling(found: Callable[..., Tensor], channels_first: bool) -> Callable[..., Tensor]:
    @functools.wraps(found)
    def sample(
        value: Tensor,
        value_spatial_shapes: Any,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        value_spatial_shapes_hw: Any = None,
    ) -> Tensor:
        shapes = value_spatial_shapes if value_spatial_shapes_hw is None else value_spatial_shapes_hw
        if sampling_locations.ndim != 6:
            more = () if value_spatial_shapes_hw is None else (value_spatial_shapes_hw,)
            return found(value, value_spatial_shapes, sampling_locations, attention_weights, *more)
        if channels_first:
            value = value.permute(0, 3, 1, 2)
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)

    sample._detr_fast = True  # type: ignore[attr-defined]
    return sample
