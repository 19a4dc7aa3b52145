"""Accelerating every model of transformers that a script builds, where it cannot be reached one by one.

>>> from detr_fast.integrations import transformers
>>> transformers.patch()      # every model that is built or loaded from now on
>>> with transformers.patched():  # or in this block alone
...     model = AutoModelForObjectDetection.from_pretrained(...)

Models stay accelerated when the patch is undone; `detr_fast.restore` is for them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detr_fast.integrations.accelerate import accelerate

__all__ = ["patch", "patched", "unpatch"]

_originals: dict[str, Any] = {}


def patch() -> None:
    """Makes `accelerate` part of building a model, in its `post_init` and in `from_pretrained`.

    A second call changes nothing.

    Raises:
        RuntimeError: transformers has not been imported, or its models have no such methods.
    """
    if _originals:
        return
    base = _base()
    post_init, from_pretrained = base.__dict__.get("post_init"), base.__dict__.get("from_pretrained")
    if post_init is None or not isinstance(from_pretrained, classmethod):
        raise RuntimeError(
            "this version of transformers has no PreTrainedModel.post_init and from_pretrained"
        )

    @functools.wraps(post_init)
    def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
        post_init(self, *args, **kwargs)
        if not any(parameter.is_meta for parameter in self.parameters()):
            accelerate(self, strict=False)

    @functools.wraps(from_pretrained.__func__)
    def loaded(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = from_pretrained.__func__(cls, *args, **kwargs)
        # with `output_loading_info` the model comes in a tuple
        accelerate(found[0] if isinstance(found, tuple) else found, strict=False)
        return found

    _originals.update(post_init=post_init, from_pretrained=from_pretrained)
    base.post_init, base.from_pretrained = initialised, classmethod(loaded)


def unpatch() -> None:
    """Undoes `patch`; does nothing without one."""
    for name, original in _originals.items():
        setattr(_base(), name, original)
    _originals.clear()


@contextmanager
def patched() -> Iterator[None]:
    """`patch` for the length of a block."""
    before = bool(_originals)
    patch()
    try:
        yield
    finally:
        if not before:
            unpatch()


def _base() -> Any:
    module = sys.modules.get("transformers.modeling_utils")
    if module is None:
        raise RuntimeError("transformers has not been imported: import the models to be patched before")
    return module.PreTrainedModel
