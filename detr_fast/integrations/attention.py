"""Which multi-scale deformable attention modules of other code bases run by our operator.

Whether a class of a known name means what we take it for is not read off a version: its forward's arguments
are compared, then both are run on a small random input, and it is left alone where they differ.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from detr_fast.integrations import ms_deform_attn as extension
from detr_fast.integrations.attention_forms import (
    FORMS,
    CoreAttention,
    Form,
    FusedAttention,
    random,
)
from detr_fast.integrations.swap import Replacement, argument_names, combined, with_globals

_TOLERANCE = 1e-4  # of the largest, in float32: another meaning differs by far more


def known_class(module: nn.Module) -> Any:
    """The class that makes this module an attention of one of the forms; None if it is none."""
    for found in type(module).__mro__:
        if any(form.named(found.__name__) for form in FORMS):
            return None if issubclass(found, Replacement) else found
    return None


def choose(module: Any, weights_for_hooks: bool) -> type[Any] | str:
    """The class that an attention module gets, or the reason why it is left alone.

    Args:
        module: one that has a `known_class`.
        weights_for_hooks: nothing but forward hooks reads the weights that a wrapper returns.
    """
    known, own = known_class(module), cast(Any, type(module))
    if own.forward is not known.forward:
        return f"its class {own.__name__} overrides forward"
    if "forward" in module.__dict__:
        return "another forward is bound to the instance"
    names, named = argument_names(known.forward), [x for x in FORMS if x.named(known.__name__)]
    form: Any = next((x for x in named if x.takes(names)), None)
    if form is None:
        expected = " or ".join(f"({', '.join(sorted(x.needed))})" for x in named)
        return f"unknown signature: expected forward with {expected}; got ({', '.join(names)})"
    if form is CoreAttention:
        return _tried(module, form, combined(form, own))
    linears = [getattr(module, name, None) for name in ("sampling_offsets", "attention_weights")]
    linears += [getattr(module, name) for name in ("value_proj", "output_proj") if hasattr(module, name)]
    for linear in linears:
        if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
            return f"expected linear layers of floats; got {type(linear).__name__} (quantised?)"
    if getattr(module, "_export", False):
        return "it is in export mode"
    if form is not FusedAttention:
        return _tried(module, form, combined(form, own))
    found: type[Any] | str = ""
    for mask_is_padding in (False, True):
        options = (("mask_is_padding", mask_is_padding), ("weights_for_hooks", weights_for_hooks))
        found = _tried(module, form, combined(form, own, *options))
        if isinstance(found, type):
            break
    return found


def _tried(module: Any, form: type[Form], fast: type[Any]) -> type[Any] | str:
    """`fast` where both forwards agree on each input that the module's own takes, else what was found."""
    own: Any = type(module)
    # where the compiled function does not run, on a CPU or for want of a build, what surrounds it is tried
    functions = dict.fromkeys(extension.FUNCTIONS, extension.MSDeformAttnFunction)
    found: type[Any] | str | Exception = ""
    try:
        for forward in (own.forward, with_globals(own.forward, **functions)):
            found = _compared(module, forward, fast, form.inputs(module))
            if not isinstance(found, Exception):
                return found
    except Exception as error:  # whatever a module of an unknown version does, it is left alone
        found = error
    return f"it could not be tried: {type(found).__name__}: {found}"


def _compared(
    module: Any, forward: Any, fast: type[Any], inputs: list[dict[str, Any]]
) -> type[Any] | str | Exception:
    """`fast` where it does what `forward` does, else how it differs or why `forward` took no input."""
    own, twin = type(module), copy.deepcopy(module).float().eval()
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    for parameter in twin.parameters():
        parameter.data.copy_(random(*parameter.shape, seed=parameter.numel()) - 0.5)
    errors: list[Exception] = []
    for given in inputs:
        given = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in given.items()}
        twin.__class__ = own
        with torch.no_grad():
            try:
                expected = forward(twin, **given)
            except Exception as error:  # such as reference points of a form that it does not take
                errors.append(error)
                continue
            twin.__class__ = fast
            if not _agree(expected, twin(**given)):
                return "on a random input its result is not that of multi-scale deformable attention"
    return errors[-1] if len(errors) == len(inputs) else fast


def _agree(expected: Any, got: Any) -> bool:
    if isinstance(expected, tuple):
        return len(expected) == len(got) and all(map(_agree, expected, got))
    return expected.shape == got.shape and bool(
        (expected - got).abs().max() <= _TOLERANCE * expected.abs().max()
    )
