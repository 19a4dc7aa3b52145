"""Convolutions with the batch norm behind them folded in, for inference.

Weights are scaled where they are used, so that parameters, buffers and the state dict stay what they are, and
a norm that trains is run as ever. The folded convolutions' weights are laid out channels last, and with them
all that flows between them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.integrations.swap import Replacement, combined, unswap

_PAIRS = (("convolution", "normalization"), ("conv", "norm"))
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_TOLERANCE = 1e-4  # of the largest, in float32


class FoldedConvolution(Replacement):
    """A convolution that does what the norm behind it would."""

    what = "convolution with its frozen norm folded in, channels last"
    norm_behind: Any
    """The norm, in the module's `__dict__` so that it is not registered twice."""

    def forward(self, x: Tensor) -> Tensor:
        module: Any = self
        norm = self.norm_behind
        if not folds(norm):
            return super().forward(x)  # type: ignore[misc]
        scale = norm.weight * (norm.running_var + getattr(norm, "eps", 1e-5)).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if module.bias is not None:
            bias = bias + module.bias * scale
        return module._conv_forward(x, module.weight * scale[:, None, None, None], bias)


class FoldedNorm(Replacement):
    """A norm that is done already, unless it trains."""

    what = "nothing, it is folded into the convolution before it"

    def forward(self, x: Tensor) -> Tensor:
        return x if folds(self) else super().forward(x)  # type: ignore[misc]


def folds(norm: Any) -> bool:
    """Whether a norm is a fixed scale and offset at present."""
    return not (isinstance(norm, nn.BatchNorm2d) and norm.training)


def pairs(model: nn.Module) -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, parent, convolution and norm wherever one feeds the other and nothing else does."""
    for path, parent in model.named_modules():
        for first, second in _PAIRS:
            conv, norm = getattr(parent, first, None), getattr(parent, second, None)
            frozen = type(norm).__name__.endswith("FrozenBatchNorm2d") or isinstance(norm, nn.BatchNorm2d)
            if isinstance(conv, nn.Conv2d) and frozen:
                yield f"{path}.{first}" if path else first, parent, conv, norm


def fold(parent: Any, conv: Any, norm: Any) -> str | None:
    """Folds a norm into the convolution before it, or returns why it does not."""
    if isinstance(conv, FoldedConvolution):
        return "already accelerated"
    if any(getattr(norm, name, None) is None for name in _STATISTICS):
        return f"its {type(norm).__name__} has no scale or statistics"
    if any(x._forward_hooks or x._forward_pre_hooks or "forward" in x.__dict__ for x in (conv, norm)):
        return "it or its norm has hooks, which would see other values"
    try:
        twin = copy.deepcopy(parent).float().eval()
        names = {id(x): name for name, x in parent.named_children()}
        x = torch.randn(1, conv.in_channels, 9, 8, generator=torch.Generator().manual_seed(0))
        x = x.to(conv.weight.device)
        with torch.no_grad():
            expected = twin(x)
            _swap(getattr(twin, names[id(conv)]), getattr(twin, names[id(norm)]))
            error = (twin(x) - expected).abs().max()
    except Exception as error:  # whatever a block of an unknown version does, it is left alone
        return f"it could not be tried: {type(error).__name__}: {error}"
    if not error <= _TOLERANCE * expected.abs().max():
        return "on a random input the folded block differs"
    _swap(conv, norm)
    return None


def unfold(module: nn.Module) -> None:
    """Undoes `fold` for a convolution; does nothing to other modules."""
    if isinstance(module, FoldedConvolution):
        conv: Any = module
        unswap(conv.__dict__.pop("norm_behind"))
        unswap(conv)
        conv.weight.data = conv.weight.data.contiguous()


def _swap(conv: Any, norm: Any) -> None:
    conv.__dict__["norm_behind"] = norm
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    for module, mixin in ((conv, FoldedConvolution), (norm, FoldedNorm)):
        own: Any = type(module)
        module.__class__ = combined(mixin, own)
