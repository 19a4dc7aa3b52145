"""The encoder-decoder transformer of Deformable DETR (Zhu et al. 2021, arXiv:2010.04159, section 4).

Tokens are the positions of all feature levels, finest level first and row-major: memory [B, S, C].
Attention to them samples a few points around a reference, a point (x, y) or a box (cx, cy, w, h), relative to
each image without its padding; `Levels` scales it to the padded maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.models.transformer import Layer, add


class Levels(NamedTuple):
    """The geometry of the feature levels of a batch.

    Args:
        shapes: (height, width) of each level.
        padding: [B, S] bool, True = padding, or None without any.
        valid_ratios: [B, N, 2], the valid part of each level's width and height.
        centers: [B, S, 2], the centre (x, y) of every position relative to the valid part of its level.
    """

    shapes: list[tuple[int, int]]
    padding: Tensor | None
    valid_ratios: Tensor
    centers: Tensor

    @classmethod
    def from_masks(cls, masks: Sequence[Tensor], padded: bool = True) -> Levels:
        """From the mask [B, h, w] of each level, True = padding; `padded` = False: no mask marks any."""
        shapes = [(mask.shape[1], mask.shape[2]) for mask in masks]
        ratios, centers = [], []
        for mask, (height, width) in zip(masks, shapes, strict=True):
            valid = torch.stack(((~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)), dim=1).float()
            x, y = (torch.arange(side, device=mask.device) + 0.5 for side in (width, height))
            grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1)
            centers.append(grid.flatten(0, 1) / valid[:, None])
            # divided by numbers rather than by a tensor, which would be copied from the host
            ratios.append(torch.stack((valid[:, 0] / width, valid[:, 1] / height), dim=1))
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1) if padded else None
        return cls(shapes, padding, torch.stack(ratios, dim=1), torch.cat(centers, dim=1))

    def scale(self, reference: Tensor) -> Tensor:
        """References [B, Q, 2] or [B, Q, 4] of the valid parts -> [B, Q, N, ...] of the padded levels."""
        ratios = self.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        return reference[:, :, None] * ratios[:, None]


class EncoderLayer(Layer):
    """Deformable self-attention among the positions of all levels and a feed-forward network."""

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        dropout: float,
        activation: str,
        levels: int,
        points: int,
    ) -> None:
        super().__init__(channels, heads, hidden, dropout, activation, pre_norm=False)
        self.self_attn = MSDeformAttn(channels, levels, heads, points)

    def forward(self, memory: Tensor, position: Tensor, reference: Tensor, levels: Levels) -> Tensor:
        """memory, position [B, S, C]; reference [B, S, N, 2] -> [B, S, C]."""
        found = self.self_attn(
            memory + position, reference, memory, levels.shapes, input_padding_mask=levels.padding
        )
        memory = self.norm1(add(memory, self.dropout1(found)))
        return self.norm2(add(memory, self.dropout2(self.feed_forward(memory))))


class DecoderLayer(Layer):
    """Self-attention among queries, deformable attention to the image and a feed-forward network."""

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        dropout: float,
        activation: str,
        levels: int,
        points: int,
    ) -> None:
        super().__init__(channels, heads, hidden, dropout, activation, pre_norm=False)
        self.cross_attn = MSDeformAttn(channels, levels, heads, points)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout3 = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        attend: Tensor | None = None,
    ) -> Tensor:
        """x, position [B, Q, C]; reference [B, Q, N, 2 or 4]; memory [B, S, C] -> [B, Q, C].

        `attend` [1 or B, Q, Q] bool: which queries each one attends to; None: all.
        """
        at = x + position
        # the official names count cross-attention first, though it comes second
        x = self.norm2(add(x, self.dropout2(self.self_attn(at, at, x, attend))))
        found = self.cross_attn(
            x + position, reference, memory, levels.shapes, input_padding_mask=levels.padding
        )
        x = self.norm1(add(x, self.dropout1(found)))
        return self.norm3(add(x, self.dropout3(self.feed_forward(x))))


class Encoder(nn.Module):
    """A stack of encoder layers; every position is its own reference."""

    def __init__(self, layers: Iterable[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Tensor, position: Tensor, levels: Levels) -> Tensor:
        reference = levels.scale(levels.centers)
        for layer in self.layers:
            memory = layer(memory, position, reference, levels)
        return memory


class Decoder(nn.Module):
    """A stack of decoder layers, each with its box head.

    Args:
        refine: each layer attends around the boxes that the layer before it found, as constants ("iterative
            bounding box refinement", appendix A.4).
    """

    def __init__(self, layers: Iterable[DecoderLayer], refine: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refine = refine

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        box_heads: Iterable[nn.Module],
    ) -> tuple[Tensor, Tensor]:
        """x, position [B, Q, C]; reference [B, Q, 2 or 4] -> states [L, B, Q, C] and boxes [L, B, Q, 4]."""
        states, boxes = [], []
        for layer, box_head in zip(self.layers, box_heads, strict=False):
            x = layer(x, position, levels.scale(reference), memory, levels)
            box = relative_box(box_head(x), reference)
            if self.refine:
                reference = box.detach()
            states.append(x)
            boxes.append(box)
        return torch.stack(states), torch.stack(boxes)


class DeformableEncoder(nn.Module):
    """Attention among the positions of several feature levels; official names and initial weights."""

    def __init__(
        self,
        channels: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        activation: str,
        levels: int,
        points: int,
    ) -> None:
        super().__init__()
        layer = (channels, heads, hidden, dropout, activation, levels, points)
        self.encoder = Encoder(EncoderLayer(*layer) for _ in range(layers))
        self.level_embed = nn.Parameter(torch.empty(levels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def encode(self, features: Sequence[Tensor], positions: Sequence[Tensor], levels: Levels) -> Tensor:
        """features, positions [B or 1, C, h, w] of each level -> memory [B, S, C]."""
        # positions of different levels coincide: an embedding distinguishes the levels
        by_level = zip(positions, self.level_embed, strict=True)
        position = _tokens([p + level[:, None, None] for p, level in by_level])
        return self.encoder(_tokens(features), position, levels)


class DeformableTransformer(DeformableEncoder):
    """Encoder over several feature levels, decoder over object queries; official names and initial weights.

    Args:
        two_stage: queries come from the encoder's best proposals instead of being learned (appendix A.4).
    """

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        levels: int = 4,
        encoder_points: int = 4,
        decoder_points: int = 4,
        refine: bool = False,
        two_stage: bool = False,
    ) -> None:
        super().__init__(channels, heads, encoder_layers, hidden, dropout, activation, levels, encoder_points)
        layer = (channels, heads, hidden, dropout, activation, levels, decoder_points)
        self.decoder = Decoder((DecoderLayer(*layer) for _ in range(decoder_layers)), refine)
        if two_stage:
            self.enc_output = nn.Linear(channels, channels)
            self.enc_output_norm = nn.LayerNorm(channels)
            self.pos_trans = nn.Linear(2 * channels, 2 * channels)
            self.pos_trans_norm = nn.LayerNorm(2 * channels)
        else:
            self.reference_points = nn.Linear(channels, 2)
        self.reset_parameters()
        if not two_stage:
            nn.init.zeros_(self.reference_points.bias)

    def learned_queries(self, queries: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """[Q, 2 C], position then content -> content, position [B, Q, C] and reference points [B, Q, 2]."""
        position, content = queries.expand(batch, -1, -1).chunk(2, dim=-1)
        reference = self.reference_points(position)
        return content, position, at_least_float32(reference).sigmoid()

    def propose(
        self, memory: Tensor, levels: Levels, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """A class and a box for every position: logits [B, S, K] and boxes before the sigmoid [B, S, 4]."""
        memory, squares = proposal_squares(memory, levels)
        memory = self.enc_output_norm(self.enc_output(memory))
        return class_head(memory), at_least_float32(box_head(memory)) + squares

    def proposed_queries(self, proposals: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """[B, Q, 4] before the sigmoid -> content, position [B, Q, C] and reference boxes [B, Q, 4]."""
        boxes = proposals.sigmoid()
        waves = box_waves(boxes, self.pos_trans.in_features // 4).to(dtype)
        position, content = self.pos_trans_norm(self.pos_trans(waves)).chunk(2, dim=-1)
        return content, position, boxes


def proposal_squares(memory: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """What proposals start from: memory [B, S, C], and a square around each position [B, S, 4].

    Squares, before the sigmoid, are 0.05 of the image wide at the finest level and twice as much at each
    further one. Positions in the padding, and those within 0.01 of the border, propose nothing: their memory
    is zero and their square infinite.
    """
    sides = torch.cat(
        [levels.centers.new_full((h * w, 2), 0.05 * 2**n) for n, (h, w) in enumerate(levels.shapes)]
    )
    squares = torch.cat((levels.centers, sides.expand_as(levels.centers)), dim=-1)
    usable = ((squares > 0.01) & (squares < 0.99)).all(-1, keepdim=True)
    if levels.padding is not None:
        usable = usable & ~levels.padding[..., None]
    return memory.where(usable, 0), torch.logit(squares.where(usable, 0.5)).where(usable, math.inf)


def best_positions(scores: Tensor, count: int, levels: Levels) -> Tensor:
    """The `count` positions of the largest scores [B, S], best first: [B, count]."""
    if scores.shape[1] < count:
        raise ValueError(
            f"images: expected at least num_queries = {count} positions to propose from; "
            f"got {scores.shape[1]} on the levels {levels.shapes}"
        )
    return scores.topk(count, dim=1).indices


def _tokens(maps: Sequence[Tensor]) -> Tensor:
    """[B, C, h, w] of each level -> [B, S, C]."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def box_waves(boxes: Tensor, features: int) -> Tensor:
    """Sines and cosines, interleaved, of cx, cy, w and h: [B, Q, 4] -> [B, Q, 4 * features]."""
    exponent = torch.arange(features // 2, dtype=boxes.dtype, device=boxes.device)
    angles = boxes[..., None] * (2 * math.pi) / 10000 ** (2 * exponent / features)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(2)


def relative_box(shift: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    """Moves a reference [..., 2 or 4] by a head's output [..., 4] in the space before the sigmoid: a box."""
    reference = inverse_sigmoid(reference, eps)
    shift = shift.to(reference.dtype)
    if reference.shape[-1] == 4:
        return (shift + reference).sigmoid()
    return torch.cat((shift[..., :2] + reference, shift[..., 2:]), dim=-1).sigmoid()


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), both at least `eps`."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def at_least_float32(x: Tensor) -> Tensor:
    """Coordinates keep float32 at least: bfloat16 knows 256 places between 0.5 and 1."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
