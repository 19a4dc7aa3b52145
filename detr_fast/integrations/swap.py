"""Giving a single module another forward, undoably, by way of its class.

A replaced module gets a class that derives from its own: `isinstance`, hooks, parameters, the state dict
and the name of the class stay as they were, and `torch.compile` sees an ordinary module. Unlike a forward
bound to the instance it is carried along by `copy.deepcopy` and `pickle`, and can call `super().forward`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any


class Replacement:
    """Base of the classes that take the place of another library's; mixed in before the class replaced.

    Attributes:
        what: what a module now is, in a few words, for the report.
        replaced: the class that was replaced.
        mixed: the arguments of `combined` that this class was made by.
    """

    what: str
    replaced: type
    mixed: tuple[Any, ...]

    @classmethod
    def attributes(cls, replaced: type) -> dict[str, Any]:
        """Class attributes that follow from the class replaced."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # the combined class has no name to import it by, what it is made of has
        return _blank, self.mixed, self.__dict__


@cache
def combined(mixin: Any, replaced: type[Any], *options: tuple[str, Any]) -> type[Any]:
    """`replaced` with the methods of `mixin` and options as class attributes, under its own name."""
    attributes = {name: getattr(replaced, name) for name in ("__module__", "__qualname__", "__doc__")}
    attributes |= {"replaced": replaced, "mixed": (mixin, replaced, *options)}
    return type(replaced.__name__, (mixin, replaced), attributes | mixin.attributes(replaced) | dict(options))


def unswap(module: object) -> None:
    """Gives a module the class that was replaced; does nothing to other objects."""
    if isinstance(module, Replacement):
        module.__class__ = module.replaced


def argument_names(method: Callable[..., Any]) -> list[str]:
    """The names of a method's arguments but for `self`, in its order."""
    return list(inspect.signature(method).parameters)[1:]


def with_globals(function: Callable[..., Any], **values: Any) -> Callable[..., Any]:
    """The same function, some of whose globals are others; the module it comes from is left as it is."""
    made: Any = inspect.unwrap(function)
    copy = FunctionType(
        made.__code__, {**made.__globals__, **values}, made.__name__, made.__defaults__, made.__closure__
    )
    copy.__kwdefaults__ = made.__kwdefaults__
    return copy


def _blank(*mixed: Any) -> Any:
    return object.__new__(combined(*mixed))
