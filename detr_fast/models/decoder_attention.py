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

from detr_fast.models import DETR, DeformableDETR, DETRSegm, Mask2Former, MaskFormer
from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.models.transformer import MultiheadAttention
from detr_fast.structures import PaddedImages


@dataclass(frozen=True)
class AttentionMaps:
    """Attention to every position of a feature map, as in DETR, MaskFormer and Mask2Former.

    maps: [B, Q, h, w] over the padded images, the mean over heads: 1 in total. Mask2Former attends inside the
        last mask of each query alone.
    """

    maps: Tensor


@dataclass(frozen=True)
class SamplingPoints:
    """Attention to a few points, as in Deformable DETR.

    locations: [B, Q, H, N, P, 2], (x, y) relative to the padded images; they may lie outside.
    weights: [B, Q, H, N, P], of each head 1 in total.
    reference: [B, Q, 2] points (x, y) or [B, Q, 4] boxes (cx, cy, w, h) that they lie around.
    """

    locations: Tensor
    weights: Tensor
    reference: Tensor


@torch.no_grad()
def decoder_attention(model: nn.Module, images: PaddedImages) -> AttentionMaps | SamplingPoints:
    """The attention of the last decoder layer from queries to the images.

    Args:
        model: one of this library's; it runs in evaluation mode and is left in the mode it was in.
        images: on the model's device.

    Raises:
        TypeError: the model is of another kind.
    """
    source = _source(model)
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
    size = source.map_size(scope_calls[-1])
    return AttentionMaps(attention.weights(query, key, *attend).mean(1).unflatten(-1, size))


class _Source(NamedTuple):
    """An attention to watch; `map_size` tells the size of its map from what `scope` is called with."""

    attention: MultiheadAttention | MSDeformAttn
    scope: nn.Module
    map_size: Callable[[tuple[Any, ...]], tuple[int, int]] = lambda arguments: _size(arguments[0])


def _source(model: Any) -> _Source:
    if isinstance(model, DETRSegm):
        model = model.detr
    if isinstance(model, DeformableDETR):
        decoder: Any = model.transformer.decoder
        return _Source(decoder.layers[-1].cross_attn, decoder)
    if isinstance(model, DETR | MaskFormer):
        owner: Any = model if isinstance(model, DETR) else model.sem_seg_head["predictor"]
        return _Source(owner.transformer.decoder.layers[-1].multihead_attn, owner.transformer)
    if isinstance(model, Mask2Former):
        predictor: Any = model.sem_seg_head["predictor"]
        layers = predictor.transformer_cross_attention_layers

        def map_size(arguments: tuple[Any, ...]) -> tuple[int, int]:
            levels = arguments[0]
            return _size(levels[(len(layers) - 1) % len(levels)])

        return _Source(layers[-1].multihead_attn, predictor, map_size)
    raise TypeError(
        "model: expected a DETR, DETRSegm, DeformableDETR, MaskFormer or Mask2Former; "
        f"got {type(model).__name__}"
    )


def _size(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of each call of a module within the block."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        yield calls
    finally:
        handle.remove()
