"""What the losses of matched queries share: checking targets, their counts and queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.checks import check_floats, check_num_targets


def check_matched(name: str, values: Tensor, query: Tensor, num_targets: Sequence[int], targets: int) -> None:
    """Raises where `values` [L, B, Q, X], `query` [L, sumT] and the target counts disagree."""
    if values.ndim != 4:
        raise ValueError(f"{name}: expected [L, B, Q, X]; got {list(values.shape)}")
    if query.shape != (values.shape[0], targets):
        raise ValueError(f"query: expected [L, sumT] = {[values.shape[0], targets]}; got {list(query.shape)}")
    if query.dtype != torch.int64:
        raise TypeError(f"query: expected int64; got {query.dtype}")
    check_num_targets(num_targets, values.shape[1], targets)
    check_floats({name: values})


def check_queries(query: Tensor, queries: int) -> None:
    """Raises where a query does not exist; reads the values, so only for the CPU."""
    bad = ((query < -1) | (query >= queries)).flatten().nonzero()
    if len(bad):
        raise query_error(query, int(bad[0]), queries)


def query_error(query: Tensor, index: int, queries: int) -> ValueError:
    """The error for entry `index` of the flattened `query`."""
    return ValueError(f"query: expected values in [-1, {queries}); got {int(query.flatten()[index])}")
