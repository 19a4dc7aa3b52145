"""Where a model's last decoder layer looks, for each object query.

Read by hooks on the layer's attention while the model runs: models compute nothing for it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.models.transformer import MultiheadAttention
from detr_fast.structures import PaddedImages


@dataclass(frozen=True)
class AttentionMaps:
    """Attention to every position of a feature map, as in DETR, MaskFormer and Mask2Former.

    Args:
        maps: [B, Q, h, w] over the padded images, the mean over heads: 1 in total. Mask2Former attends inside
            the last mask of each query alone.
    """

    maps: Tensor


@dataclass(frozen=True)
class SamplingPoints:
    """Attention to a few points, as in Deformable DETR.

    Args:
        locations: [B, Q, H, N, P, 2], (x, y) relative to the padded images; they may lie outside.
        weights: [B, Q, H, N, P], of each head 1 in total.
        reference: [B, Q, 2] points (x, y) or [B, Q, 4] boxes (cx, cy, w, h) that they lie around.
    """

    locations: Tensor
    weights: Tensor
    reference: Tensor


class AttentionSource(NamedTuple):
    """Where a model's last decoder layer attends to the images.

    Args:
        attention: the module that does.
        scope: a module around it, called with the features that it attends to.
        features: from the first argument of `scope` to the map [B, C, h, w] that attention weights lie over.
    """

    attention: MultiheadAttention | MSDeformAttn
    scope: nn.Module
    features: Callable[[Any], Tensor] = lambda argument: argument


@torch.no_grad()
def watch_attention(
    model: nn.Module, images: PaddedImages, source: AttentionSource
) -> AttentionMaps | SamplingPoints:
    """Runs a model in evaluation mode and returns what its `source` attended to; its mode stays as it was."""
    training = model.training
    with _calls(source.attention) as attention_calls, _calls(source.scope) as scope_calls:
        try:
            model.eval()(images)
        finally:
            model.train(training)
    attention = source.attention
    if isinstance(attention, MSDeformAttn):
        query, reference, _, shapes = attention_calls[-1][:4]
        locations, weights = attention.samples(query, reference, shapes)
        # levels differ by the rounding of their sizes
        return SamplingPoints(locations, weights, reference[:, :, 0])
    query, key, _, *attend = attention_calls[-1]
    size = source.features(scope_calls[-1][0]).shape[-2:]
    return AttentionMaps(attention.weights(query, key, *attend).mean(1).unflatten(-1, size))


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of each call of a module within the block."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        yield calls
    finally:
        handle.remove()
