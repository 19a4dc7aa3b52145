"""Making a model that somebody has faster, where it stands: `accelerate` and `restore`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.integrations import (
    assigner,
    attention,
    losses,
    mask_losses,
    official_criterion,
    official_masks,
    official_matcher,
)
from detr_fast.integrations import inference as folding
from detr_fast.integrations.attention_forms import FORMS, Form
from detr_fast.integrations.swap import unswap
from detr_fast.ops.box_match_cost import OPERATOR as BOX_MATCH_COST
from detr_fast.ops.mask_match_cost import OPERATOR as MASK_MATCH_COST
from detr_fast.ops.ms_deform_attn import OPERATOR as MS_DEFORM_ATTN
from detr_fast.ops.operator import ORDER, Operator

_DONE = "already accelerated"
_LOOKED_FOR = (
    f"an attention module ({', '.join(sorted({form.name for form in FORMS}))}), a loss or criterion of "
    "transformers, or a HungarianMatcher"
)


@dataclass
class Report:
    """What `accelerate` did to a model.

    Attributes:
        model: the class of the model.
        replaced: (module path, what it is now) of everything replaced; the path of the model itself is "".
        skipped: (module path, why it was left alone) of everything that was known and yet left alone.
    """

    model: str
    replaced: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.replaced)} replaced, {len(self.skipped)} left alone"]
        for title, entries in (("replaced", self.replaced), ("left alone", self.skipped)):
            groups: dict[tuple[str, str], int] = {}
            for path, text in entries:
                key = (re.sub(r"\b\d+\b", "*", path) or "the model", text)
                groups[key] = groups.get(key, 0) + 1
            for (path, text), count in groups.items():
                times = f" ({count}x)" if count > 1 else ""
                lines.append(f"  {title}: {path}{times}: {text}")
        return "\n".join(lines)


def accelerate(model: nn.Module, strict: bool = True, inference: bool = False) -> Report:
    """Replaces what is slow in this one model by our operators; it computes the same.

    Parameters, state dict, hooks, `save_pretrained` and the class of the model stay as they are, and so does
    every other model. It works before or after `.to()`, `torch.compile`, DistributedDataParallel and
    gradient checkpointing; `copy.deepcopy` and `pickle` keep it, and a second call changes nothing.
    A part that is unknown, overridden or not served faster here is left alone, and the report says why.

    Args:
        model: a model of transformers, or any module that holds one.
        strict: raise where the model holds nothing that is known.
        inference: also fold the batch norms that do not train into the convolutions before them, lay those
            out channels last, and let ReLUs overwrite their inputs. Norms in training mode go on as ever.

    Returns:
        What was replaced and what was left alone, readable when printed.

    Raises:
        TypeError: `model` is not a module.
        ValueError: with `strict`, a model in which nothing is known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    report = Report(type(model).__name__)
    with _plain_defaults():
        _attention(model, report)
        _losses(model, report)
        _criteria(model, report)
        _assigners(model, report)
        if inference:
            _blocks(model, report)
    if strict and not report.replaced and not report.skipped:
        hint = ""
        if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            hint = "; a scripted or exported model holds its own graph: accelerate it before"
        raise ValueError(f"model: expected one with {_LOOKED_FOR}; got {report.model} without any{hint}")
    return report


def restore(model: nn.Module) -> None:
    """Undoes `accelerate`; does nothing to what it did not replace."""
    for module in model.modules():
        folding.unfold(module)
        unswap(module)
        unswap(getattr(module, "assigner", None))
        if isinstance(module.__dict__.get("_loss_function"), losses.FastLoss):
            del module._loss_function


def why_not_served(operator: Operator, like: Tensor) -> str | None:
    """Why nothing but an operator's reference serves tensors like this one; None if a fast backend does."""
    reasons = operator.explain(like.device, like.dtype)
    if any(reasons[name] is None for name in ORDER if name != "reference"):
        return None
    listing = "; ".join(f"{name}: {reasons[name]}" for name in ORDER if name != "reference")
    return f"no fast backend serves {like.dtype} on {like.device} ({listing})"


def _first(*modules: nn.Module) -> Tensor:
    # buffers first: OneFormer's criterion has its class weights there, and a temperature in float64
    tensors = (x for module in modules for x in chain(module.buffers(), module.parameters()))
    return next((x for x in tensors if x.is_floating_point()), torch.empty(0))


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Trials make their tensors in float32 on the CPU, whatever defaults a script has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _attention(model: nn.Module, report: Report) -> None:
    recorded = _recorded(model)
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, Form):
            report.skipped.append((path, _DONE))
            inside += (f"{path}." if path else "",)
        elif attention.known_class(module) and not path.startswith(inside):
            reason = why_not_served(MS_DEFORM_ATTN, _first(module, model))
            chosen = reason or attention.choose(module, isinstance(module, recorded))
            if _replace(path, module, chosen, report):
                inside += (f"{path}." if path else "",)


def _losses(model: nn.Module, report: Report) -> None:
    mapping = getattr(sys.modules.get("transformers.loss.loss_utils"), "LOSS_MAPPING", {})
    for path, module in model.named_modules():
        if not isinstance(getattr(type(module), "loss_function", None), property):
            continue
        known = mapping.get(getattr(module, "loss_type", None))
        own = module.__dict__.get("_loss_function")
        chosen: losses.FastLoss | str | None
        if isinstance(own, losses.FastLoss):
            chosen = _DONE
        elif (chosen := losses.choose(known, module.config)) is not None and own is not None:
            chosen = "it has a loss function of its own"
        elif chosen is not None:
            chosen = why_not_served(BOX_MATCH_COST, next(module.parameters())) or chosen
        name = f"{path}.loss_function" if path else "loss_function"
        if isinstance(chosen, losses.FastLoss):
            module.loss_function = chosen
            report.replaced.append((name, chosen.what))
        elif chosen is not None:
            report.skipped.append((name, chosen))


def _criteria(model: nn.Module, report: Report) -> None:
    done = (
        mask_losses.StackedMaskLoss,
        official_matcher.OfficialMatcher,
        official_criterion.MatchedTogether,
        official_masks.OfficialMaskMatcher,
        official_masks.WholeMaskCriterion,
    )
    kinds: tuple[tuple[Any, Operator], ...] = (
        (mask_losses, MASK_MATCH_COST),
        (official_matcher, BOX_MATCH_COST),
        (official_criterion, BOX_MATCH_COST),
        (official_masks, MASK_MATCH_COST),
    )
    for path, module in reversed(list(model.named_modules())):  # a criterion after its matcher
        if isinstance(module, done):
            report.skipped.append((path, _DONE))
            continue
        for kind, operator in kinds:
            if kind.known(module):
                like = getattr(module, "empty_weight", None)
                reason = why_not_served(operator, _first(module, model) if like is None else like)
                _replace(path, module, reason or _chosen(kind, module), report)
                break


def _chosen(kind: Any, module: nn.Module) -> type[Any] | str:
    if "forward" in module.__dict__:
        return "another forward is bound to the instance"
    try:
        return kind.choose(module)
    except Exception as error:  # whatever a module of an unknown version does, it is left alone
        return f"it could not be tried: {type(error).__name__}: {error}"


def _assigners(model: nn.Module, report: Report) -> None:
    for path, module in model.named_modules():
        found = module.__dict__.get("assigner")
        name = f"{path}.assigner" if path else "assigner"
        if isinstance(found, assigner.FastAssigner):
            report.skipped.append((name, _DONE))
        elif type(found).__name__ == assigner.NAME:
            reason = why_not_served(BOX_MATCH_COST, _first(module, model))
            _replace(name, found, reason or assigner.choose(found), report)


def _blocks(model: nn.Module, report: Report) -> None:
    kinds: tuple[tuple[Any, Any, str], ...] = (
        (folding.pairs, folding.fold, folding.FoldedConvolution.what),
        (folding.activations, folding.act_in_place, folding.InPlaceActivation.what),
    )
    for found, change, what in kinds:
        for path, *where in list(found(model)):
            reason = change(*where)
            (report.skipped if reason else report.replaced).append((path, reason or what))


def _replace(path: str, module: Any, chosen: type[Any] | str, report: Report) -> bool:
    """Gives a module another class, or notes why not."""
    if isinstance(chosen, str):
        report.skipped.append((path, chosen))
        return False
    module.__class__ = chosen
    report.replaced.append((path, chosen.what))
    return True


def _recorded(model: nn.Module) -> tuple[type, ...]:
    """The classes whose outputs transformers reads by hooks: `_can_record_outputs` of the models inside."""
    specs = (getattr(module, "_can_record_outputs", None) or {} for module in model.modules())
    recorders = (
        recorder
        for spec in specs
        for given in spec.values()
        for recorder in (given if isinstance(given, list) else [given])
    )
    found = (getattr(recorder, "target_class", recorder) for recorder in recorders)
    return tuple(x for x in found if isinstance(x, type))
