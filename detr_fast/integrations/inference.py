"""What inference can take beyond the operators: norms folded into convolutions, activations in place.

Weights are scaled where they are used, so that parameters, buffers and the state dict stay what they are, and
a norm that trains is run as ever. The folded convolutions' weights are laid out channels last, and with them
all that flows between them. Each block is tried beside a changed copy of itself first.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
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


class InPlaceActivation(Replacement):
    """A ReLU that overwrites its input: a fresh result of such a size costs more than the rectifying."""

    what = "ReLU in place"

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x, inplace=True)


def folds(norm: Any) -> bool:
    """Whether a norm is a fixed scale and offset at present."""
    return not (isinstance(norm, nn.BatchNorm2d) and norm.training)


def pairs(model: nn.Module) -> Iterator[tuple[str, Any, tuple[str, str]]]:
    """Path of the convolution, block, and names in it, wherever one feeds a norm and nothing else."""
    for path, block in model.named_modules():
        for first, second in _PAIRS:
            conv, norm = getattr(block, first, None), getattr(block, second, None)
            frozen = type(norm).__name__.endswith("FrozenBatchNorm2d") or isinstance(norm, nn.BatchNorm2d)
            if isinstance(conv, nn.Conv2d) and frozen:
                yield _joined(path, first), block, (first, second)


def fold(block: Any, names: tuple[str, str]) -> str | None:
    """Folds a norm into the convolution before it, or returns why it does not."""
    conv, norm = (getattr(block, name) for name in names)
    if isinstance(conv, FoldedConvolution):
        return "already accelerated"
    if any(getattr(norm, name, None) is None for name in _STATISTICS):
        return f"its {type(norm).__name__} has no scale or statistics"
    if _observed(conv) or _observed(norm):
        return "it or its norm has hooks, which would see other values"
    return _changed(block, lambda x: _fold(*(getattr(x, name) for name in names)))


def unfold(module: nn.Module) -> None:
    """Undoes `fold` for a convolution; does nothing to other modules."""
    if isinstance(module, FoldedConvolution):
        conv: Any = module
        unswap(conv.__dict__.pop("norm_behind"))
        unswap(conv)
        conv.weight.data = conv.weight.data.contiguous()


def activations(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Path, block and name in it of each ReLU of one block alone that takes one tensor."""
    places = Counter(id(child) for block in model.modules() for child in block.children())
    for path, block in model.named_modules():
        for name, child in block.named_children():
            single = isinstance(child, nn.ReLU) and not child.inplace and places[id(child)] == 1
            if single and _takes_one_tensor(block):
                yield _joined(path, name), block, name


def act_in_place(block: Any, name: str) -> str | None:
    """Lets a ReLU of a block overwrite its input, or returns why it does not."""
    if isinstance(getattr(block, name), InPlaceActivation):
        return "already accelerated"
    if any(_observed(part) for part in block.modules()):
        return "its block has hooks, which would see other values"
    return _changed(block, lambda x: _give(getattr(x, name), InPlaceActivation))


def _changed(block: Any, change: Callable[[Any], None]) -> str | None:
    """Changes a block if a copy does the same after the change, its input untouched; else returns why not."""
    try:
        twin = copy.deepcopy(block).float().eval()
        first: Any = next(x for x in twin.modules() if isinstance(x, (nn.Conv2d, nn.Linear)))
        shape = (1, first.in_channels, 9, 8) if isinstance(first, nn.Conv2d) else (1, 9, first.in_features)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.weight.device)
        with torch.no_grad():
            expected = twin(x.clone())
            change(twin)
            given = x.clone()
            error = (twin(given) - expected).abs().max()
    except Exception as error:  # whatever a block of an unknown version does, it is left alone
        return f"it could not be tried: {type(error).__name__}: {error}"
    if not error <= _TOLERANCE * expected.abs().max() or not torch.equal(given, x):
        return "on a random input the changed block differs"
    change(block)
    return None


def _fold(conv: Any, norm: Any) -> None:
    conv.__dict__["norm_behind"] = norm
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    _give(conv, FoldedConvolution)
    _give(norm, FoldedNorm)


def _give(module: Any, mixin: Any) -> None:
    own: Any = type(module)
    module.__class__ = combined(mixin, own)


def _observed(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _takes_one_tensor(block: Any) -> bool:
    required = [x for x in inspect.signature(block.forward).parameters.values() if x.default is x.empty]
    return len(required) == 1 and required[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
