"""The encoder-decoder transformer of DETR (Carion et al. 2020, section 3.2 and figure 10).

Batch first throughout: memory [B, S, C] with S = h * w positions, queries [B, Q, C]. Positions are added to
queries and keys of every attention, never to values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.models.common import in_inference

# in place: what a linear layer returns is nobody else's
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "gelu": F.gelu, "glu": F.glu}


ROWS = 2048  # that pass the feed-forward network at once, in inference on a CPU


def add(x: Tensor, update: Tensor) -> Tensor:
    """x + update; in inference it takes the place of the update, which must have no other use."""
    if not in_inference() or update.dtype != x.dtype or update.shape != x.shape:
        return x + update
    return update.add_(x)


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None) -> Tensor:
        """Queries attend to keys and take up values.

        Args:
            query: [B, Q, C].
            key: [B, S, C].
            value: [B, S, C].
            attend: [B, S], or [B, Q, S] for each query its own, bool, False = leave out.

        Returns:
            [B, Q, C].
        """
        channels = query.shape[-1]
        if query is key:
            weights, biases = (
                x.split((2 * channels, channels)) for x in (self.in_proj_weight, self.in_proj_bias)
            )
            q, k = F.linear(query, weights[0], biases[0]).chunk(2, dim=-1)
            v = F.linear(value, weights[1], biases[1])
        else:
            weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
            q, k, v = map(F.linear, (query, key, value), weights, biases)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None if attend is None else attend.view(attend.shape[0], 1, -1, attend.shape[-1])
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, attend: Tensor | None = None) -> Tensor:
        """What `forward` weighs the values with, before any dropout: [B, H, Q, S], of sum 1 over S."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k = map(F.linear, (query, key), weights, biases)
        q, k = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k))
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if attend is not None:
            mask = attend.view(attend.shape[0], 1, -1, attend.shape[-1])
            logits = logits.masked_fill(~mask, -math.inf)
        return logits.softmax(-1)


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, a feed-forward network and their norms."""

    def __init__(
        self, channels: int, heads: int, hidden: int, dropout: float, activation: str, pre_norm: bool
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn: nn.Module = MultiheadAttention(channels, heads, dropout)
        # a gated unit halves its input
        self.linear1 = nn.Linear(channels, 2 * hidden if activation == "glu" else hidden)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        if not in_inference() or x.device.type != "cpu":
            return self._feed_forward(x)
        # the hidden layer of few rows stays in the cache, in memory that is used again
        parts = [self._feed_forward(rows) for rows in x.flatten(0, -2).split(ROWS)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(Layer):
    """Self-attention over the image and a feed-forward network."""

    def forward(self, memory: Tensor, position: Tensor, attend: Tensor | None) -> Tensor:
        """memory, position [B, S, C]; attend [B, S] or None -> [B, S, C]."""
        if self.pre_norm:
            x = self.norm1(memory)
            at = x + position
            memory = add(memory, self.dropout1(self.self_attn(at, at, x, attend)))
            return add(memory, self.dropout2(self.feed_forward(self.norm2(memory))))
        at = memory + position
        memory = self.norm1(add(memory, self.dropout1(self.self_attn(at, at, memory, attend))))
        return self.norm2(add(memory, self.dropout2(self.feed_forward(memory))))


class DecoderLayer(Layer):
    """Self-attention among queries, attention from queries to the image, and a feed-forward network."""

    def __init__(
        self, channels: int, heads: int, hidden: int, dropout: float, activation: str, pre_norm: bool
    ) -> None:
        super().__init__(channels, heads, hidden, dropout, activation, pre_norm)
        self.multihead_attn = MultiheadAttention(channels, heads, dropout)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout3 = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, keys: Tensor, attend: Tensor | None
    ) -> Tensor:
        """x [B, Q, C], query_position [B, Q, C] or [Q, C]; memory and keys = memory + position [B, S, C]."""
        if self.pre_norm:
            y = self.norm1(x)
            at = y + query_position
            x = add(x, self.dropout1(self.self_attn(at, at, y)))
            y = self.norm2(x)
            x = add(x, self.dropout2(self.multihead_attn(y + query_position, keys, memory, attend)))
            return add(x, self.dropout3(self.feed_forward(self.norm3(x))))
        at = x + query_position
        x = self.norm1(add(x, self.dropout1(self.self_attn(at, at, x))))
        x = self.norm2(add(x, self.dropout2(self.multihead_attn(x + query_position, keys, memory, attend))))
        return self.norm3(add(x, self.dropout3(self.feed_forward(x))))


class Encoder(nn.Module):
    """A stack of encoder layers, with a final norm where the layers normalise first."""

    def __init__(self, layers: list[EncoderLayer], norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, memory: Tensor, position: Tensor, attend: Tensor | None) -> Tensor:
        for layer in self.layers:
            memory = layer(memory, position, attend)
        return memory if self.norm is None else self.norm(memory)


class Decoder(nn.Module):
    """A stack of decoder layers; every layer's output goes through the one final norm."""

    def __init__(self, layers: list[DecoderLayer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, query_position: Tensor, memory: Tensor, position: Tensor, attend: Tensor | None
    ) -> Tensor:
        """query_position [Q, C]; memory, position [B, S, C] -> [L, B, Q, C]. Queries start from zero."""
        keys = memory + position
        x = torch.zeros_like(query_position).expand(memory.shape[0], -1, -1)
        outputs = []
        for layer in self.layers:
            x = layer(x, query_position, memory, keys, attend)
            outputs.append(x)
        return self.norm(torch.stack(outputs))


class Transformer(nn.Module):
    """Encoder over image features, decoder over object queries; weights start as in the official code."""

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        layer = (channels, heads, hidden, dropout, activation, pre_norm)
        self.encoder = Encoder(
            [EncoderLayer(*layer) for _ in range(encoder_layers)],
            nn.LayerNorm(channels) if pre_norm else None,
        )
        self.decoder = Decoder([DecoderLayer(*layer) for _ in range(decoder_layers)], nn.LayerNorm(channels))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, query_position: Tensor, position: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encodes the image and decodes the queries.

        Args:
            features: [B, C, h, w].
            query_position: [Q, C].
            position: [B or 1, C, h, w].
            mask: [B, h, w] bool, True = padding, or None.

        Returns:
            Decoder outputs [L, B, Q, C] and the encoded image [B, C, h, w].
        """
        batch, channels, height, width = features.shape
        tokens = features.flatten(2).transpose(1, 2)
        position = position.flatten(2).transpose(1, 2)
        attend = None if mask is None else ~mask.flatten(1)
        memory = self.encoder(tokens, position, attend)
        hs = self.decoder(query_position, memory, position, attend)
        return hs, memory.transpose(1, 2).reshape(batch, channels, height, width)
