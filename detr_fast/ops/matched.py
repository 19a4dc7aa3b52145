"""What the losses of matched queries share: checking targets, sizes and queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_matched(
    name: str, values: Tensor, per_target: Tensor, per_target_name: str, query: Tensor, sizes: Sequence[int]
) -> None:
    """Raises where `values` [L, B, Q, X], `per_target` [sumT, ...], `query` [L, sumT] and sizes disagree."""
    if values.ndim != 4:
        raise ValueError(f"{name}: expected [L, B, Q, X]; got {list(values.shape)}")
    if values.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64; got {values.dtype}")
    layers, images, targets = values.shape[0], values.shape[1], per_target.shape[0]
    if query.shape != (layers, targets):
        raise ValueError(f"query: expected [L, sumT] = {[layers, targets]}; got {list(query.shape)}")
    if query.dtype != torch.int64:
        raise TypeError(f"query: expected int64; got {query.dtype}")
    if isinstance(sizes, Tensor):
        raise TypeError("sizes: expected a sequence of B ints on the host; got a Tensor")
    if len(sizes) != images:
        raise ValueError(
            f"sizes: expected one target count for each of B = {images} images; got {len(sizes)}"
        )
    if sum(sizes) != targets or (sizes and min(sizes) < 0):
        raise ValueError(f"sizes: expected counts >= 0 that add up to sumT = {targets}; got {list(sizes)}")
    for other_name, other in ((per_target_name, per_target), ("query", query)):
        if other.device != values.device:
            raise ValueError(
                f"{other_name}: expected a tensor on {values.device}, as {name}; got {other.device}"
            )


def check_queries(query: Tensor, queries: int) -> None:
    """Raises where a query does not exist; reads the values, so only for the CPU."""
    bad = ((query < -1) | (query >= queries)).flatten().nonzero()
    if len(bad):
        raise query_error(query, int(bad[0]), queries)


def query_error(query: Tensor, index: int, queries: int) -> ValueError:
    """The error for entry `index` of the flattened `query`."""
    return ValueError(f"query: expected values in [-1, {queries}); got {int(query.flatten()[index])}")
