"""Finding the weights in what a checkpoint holds: under which entry they are, and what wraps their names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detr_fast.checkpoints.kinds import is_detector, known_kind

# entries that hold weights, the first that is there is taken
NESTS = (
    "model", "state_dict", "ema.module", "ema", "ema_state_dict", "model_ema", "ema_model", "net", "network",
    "model_state_dict", "state_dict_ema", "module", "weights", "params", "0",
)  # fmt: skip
MAX_NESTING = 4
# what training keeps beside the weights and shapes like them
NO_WEIGHTS = re.compile(r"optim|sched|scaler|_extra_state$|^(amp|state|criterion|loss|meta|training)$")

# parts of names that torch's wrappers add at any place
ADDED = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# first parts of names that code around a model adds
WRAPPERS = (
    "module",
    "model",
    "net",
    "network",
    "detr",
    "student",
    "ema_model",
    "ema",
    "model_ema",
    "teacher",
)


def find_state(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a checkpoint under the names that its model gave, and remarks on what was taken.

    Raises ValueError where there is none, or more than one and nothing tells which.
    """
    place, state = _chosen(content)
    remarks = []
    others = sorted(_candidates(content).keys() - {place})
    if place:
        beside = f" (there is {', '.join(map(repr, others))} too)" if others else ""
        remarks.append(f"the weights of the entry {place!r} were taken{beside}")
    tensors = {_text(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if dropped := [f"{name!s:.40}" for name, value in state.items() if not isinstance(value, Tensor)]:
        remarks.append(f"entries without weights were left out: {_few(dropped)}")
    tensors, unwrapped = unwrap(tensors)
    return tensors, remarks + unwrapped


def unwrap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`state` without what wrappers add to the names: DistributedDataParallel's `module.`, `torch.compile`'s
    `_orig_mod.`, FSDP's, `model.` of a Lightning module, and any other first part around a known model.

    A DETR for segmentation has names that begin with `detr.` itself; they stay.
    """
    remarks = []
    plain = {ADDED.sub("", name): tensor for name, tensor in state.items()}
    if len(plain) != len(state):
        raise ValueError("expected one model; got entries that differ in a wrapper's prefix alone")
    if plain.keys() != state.keys():
        remarks.append("what torch.compile or FSDP adds to the names was removed")
    path = _path_to_model(plain)
    if path:
        inside = {name.removeprefix(path): t for name, t in plain.items() if name.startswith(path)}
        outside = [name for name in plain if not name.startswith(path)]
        remarks.append(f"{path!r} was removed from the names")
        if outside:
            remarks.append(f"{len(outside)} entries beside it were left out: {_few(outside)}")
        return inside, remarks
    return plain, remarks


def _path_to_model(names: Mapping[str, Any], depth: int = 0) -> str:
    """The prefix under which the names are those of a known model; "" where they are or no prefix does it."""
    if known_kind(names) is not None or depth > 2 * MAX_NESTING:
        return ""
    groups: dict[str, dict[str, Any]] = {}
    for name in names:
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = None
    paths = {}
    for first, inner in groups.items():
        path = _path_to_model(inner, depth + 1)
        found = known_kind([name.removeprefix(path) for name in inner if name.startswith(path)])
        whole = len(inner) == len(names)
        if found is not None and (whole or is_detector(found)):
            paths[first] = f"{first}.{path}"
        elif whole and first in WRAPPERS:
            return f"{first}.{path}"
    known = [first for first in WRAPPERS if first in paths] or list(paths)
    if len(known) > 1 and known[0] not in WRAPPERS:
        raise ValueError(f"expected one model; got {' and '.join(sorted(known))}")
    return paths[known[0]] if known else ""


def _chosen(content: Any) -> tuple[str, Mapping[Any, Any]]:
    """Where the weights are, as in "ema.module", and they."""
    found = _candidates(content)
    if "" in found:
        return "", found[""]
    ranked = sorted(found, key=_rank)
    if not ranked:
        raise ValueError(f"expected a state dict of tensors; got {_what_it_is(content)}")
    best = [place for place in ranked if _rank(place) == _rank(ranked[0])]
    if len(best) > 1:
        raise ValueError(f"expected one state dict; got {', '.join(map(repr, best))}")
    return best[0], found[best[0]]


def _rank(place: str) -> tuple[int, int]:
    """Small for what is to be taken: by the first part, so that an entry beside "model" is not."""
    if place in NESTS:
        return NESTS.index(place), 0
    first = place.partition(".")[0]
    return (NESTS.index(first) if first in NESTS else len(NESTS)), place.count(".")


def _candidates(content: Any, depth: int = 0) -> dict[str, Mapping[Any, Any]]:
    """Every mapping of names to tensors, by its place.

    Of one that holds tensors, such as random states, beside other mappings of tensors, those count that are
    where weights usually are, else it or they, whoever has more tensors.
    """
    if isinstance(content, list | tuple) and len(content) == 1 and isinstance(content[0], Mapping):
        content = {"0": content[0]}
    if not isinstance(content, Mapping) or depth > MAX_NESTING or "param_groups" in content:
        return {}
    inner = {
        f"{name}.{place}" if place else name: state
        for name, value in content.items()
        if isinstance(name, str) and not NO_WEIGHTS.search(name)
        for place, state in _candidates(value, depth + 1).items()
    }
    named = all(isinstance(name, str | bytes) for name in content)
    if not named or not _tensors_in(content):
        return inner
    usual = {place: state for place, state in inner.items() if _rank(place)[0] < len(NESTS)}
    more = any(_tensors_in(state) > _tensors_in(content) for state in inner.values())
    return usual or (inner if more else {"": content})


def _tensors_in(content: Mapping[Any, Any]) -> int:
    """How many tensors a mapping holds itself; numbers count for none."""
    return sum(isinstance(value, Tensor) and value.ndim > 0 for value in content.values())


def _what_it_is(content: Any) -> str:
    if isinstance(content, Mapping) and ("param_groups" in content or "optimizer" in content):
        return "an optimizer's state, without a model's weights"
    if isinstance(content, Mapping):
        names = [f"{name!s:.40}" for name in content]
        return f"the entries {_few(names)}" if names else "nothing"
    if isinstance(content, list | tuple):
        return f"a {type(content).__name__} of {len(content)}"
    return f"a {type(content).__name__}"


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def options_in(content: Any) -> Mapping[str, Any] | None:
    """The options that the training code stored under "args"; None where there are none."""
    args = content.get("args") if isinstance(content, Mapping) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return args if isinstance(args, Mapping) else None
