"""Swin Transformer backbones (Liu et al. 2021), named as Microsoft's and Mask2Former's checkpoints name them.

Maps stay [B, h, w, C] from the patches on, so tokens and windows are views of them.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import load_state_dict, read_checkpoint

logger = logging.getLogger(__name__)

APART = -100.0  # added to the logits of two tokens that only a cyclic shift made neighbours
CLASSIFIER = ("head.", "norm.")


@dataclass(frozen=True)
class SwinSizes:
    """The official options.

    Args:
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths, num_heads: blocks and attention heads of each stage.
        window_size: tokens along the side of an attention window.
        patch_size: pixels along the side of a token of the first stage.
        mlp_ratio: hidden channels of the feed-forward networks over their inputs.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 7
    patch_size: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = True

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"num_heads: expected one number a stage, as depths = {self.depths}; got {self.num_heads}"
            )
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.embed_dim << stage) % heads:
                raise ValueError(
                    f"num_heads: expected a divisor of {self.embed_dim << stage} channels; got {heads}"
                )
        if self.window_size < 2:
            raise ValueError(f"window_size: expected at least 2; got {self.window_size}")


ARCHITECTURES = {
    "swin_t": SwinSizes(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": SwinSizes(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": SwinSizes(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_b_384": SwinSizes(128, (2, 2, 18, 2), (4, 8, 16, 32), window_size=12),
    "swin_l": SwinSizes(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "swin_l_384": SwinSizes(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12),
}


class WindowAttention(nn.Module):
    """Self-attention within windows of `window` x `window` tokens, biased by their relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """x [B * W, N, C], the W windows of N tokens of each image; apart [W, 1, N, N] bool or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = x.shape[1]
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.to(q.dtype).T.reshape(1, self.heads, tokens, tokens)
        if apart is not None:
            bias = (bias + APART * apart.to(q.dtype)).repeat(x.shape[0] // apart.shape[0], 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Window attention, shifted in every other block, and a feed-forward network; norms come first."""

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, hidden: int, qkv_bias: bool, drop: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, qkv_bias)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(channels, hidden), gelu=nn.GELU(), fc2=nn.Linear(hidden, channels))
        )

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """x [B, h, w, C]; apart [W, 1, N, N]: see `shifted_apart`."""
        height, width = x.shape[1:3]
        # padding enters after the norm, as zeros, and takes part in the attention
        y = _pad(self.norm1(x), self.window)
        padded = y.shape[1:3]
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(1, 2))
        y = self.attn(_to_windows(y, self.window), apart if self.shift else None)
        y = _from_windows(y, self.window, *padded)
        if self.shift:
            y = y.roll((self.shift, self.shift), dims=(1, 2))
        x = x + self._drop_path(y[:, :height, :width])
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Stochastic depth: in training, whole images skip the branch."""
        if not self.drop or not self.training:
            return x
        kept = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.drop)
        return x * (kept / (1 - self.drop))


class PatchMerging(nn.Module):
    """2 x 2 neighbours become one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, C] -> [B, ceil(h / 2), ceil(w / 2), 2 * C]."""
        x = _pad(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # the official order of the four: the row changes fastest
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Stage(nn.Module):
    """Blocks at one resolution, and what leads to the next stage, if any."""

    def __init__(self, blocks: Sequence[Block], window: int, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, w, C] -> the stage's output of the same shape, and the next stage's input."""
        apart = shifted_apart(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = block(x, apart)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches of pixels as tokens."""

    def __init__(self, channels: int, patch: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, channels, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, ceil(H / patch), ceil(W / patch), C]."""
        images = _pad(images.permute(0, 2, 3, 1), self.patch).permute(0, 3, 1, 2)
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """A Swin Transformer without its classifier, with a norm on the output of each stage that is returned.

    Args:
        sizes: a name of `ARCHITECTURES` or other sizes.
        drop_path: the largest rate of stochastic depth, that of the last block; it grows linearly from 0.
        outputs: how many of the last stages' outputs are returned; None: all.
    """

    def __init__(
        self, sizes: str | SwinSizes = "swin_t", drop_path: float = 0.3, outputs: int | None = None
    ) -> None:
        super().__init__()
        if isinstance(sizes, str):
            if sizes not in ARCHITECTURES:
                raise ValueError(f"sizes: expected one of {', '.join(ARCHITECTURES)}; got {sizes!r}")
            sizes = ARCHITECTURES[sizes]
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected 0 <= drop_path < 1; got {drop_path!r}")
        self.channels = tuple(sizes.embed_dim << stage for stage in range(len(sizes.depths)))
        self.patch_embed = PatchEmbedding(sizes.embed_dim, sizes.patch_size, sizes.patch_norm)
        total = sum(sizes.depths)
        drops = iter([drop_path * n / max(total - 1, 1) for n in range(total)])
        last = len(sizes.depths) - 1
        self.first = 0 if outputs is None else last + 1 - outputs
        self.layers = nn.ModuleList()
        for n, (channels, depth, heads) in enumerate(
            zip(self.channels, sizes.depths, sizes.num_heads, strict=True)
        ):
            blocks = [
                Block(
                    channels,
                    heads,
                    sizes.window_size,
                    sizes.window_size // 2 if i % 2 else 0,
                    int(channels * sizes.mlp_ratio),
                    sizes.qkv_bias,
                    next(drops),
                )
                for i in range(depth)
            ]
            merging = PatchMerging(channels) if n < last else None
            self.layers.append(Stage(blocks, sizes.window_size, merging))
            if n >= self.first:
                self.add_module(f"norm{n}", nn.LayerNorm(channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the normalised outputs of the stages, strides 4, 8, 16 and 32, rounded up.

        They are channels last, so features -> tokens is a view.
        """
        x = self.patch_embed(images)
        features = []
        for n, stage in enumerate(self.layers):
            output, x = stage(x)
            if n >= self.first:
                features.append(self.get_submodule(f"norm{n}")(output).permute(0, 3, 1, 2))
        return features

    def load_official(self, path: str | Path) -> None:
        """Loads a Swin file of Microsoft, a classifier's or one made from it; ValueError for any other file.

        The classifier is left out. The norms of the stages' outputs, which a classifier lacks, keep their
        fresh values. Bias tables of another window size are resampled, bicubic, with a warning.
        """
        own = self.state_dict()
        state = {name: tensor for name, tensor in own.items() if re.match(r"norm\d+\.", name)}
        state |= {
            name: tensor for name, tensor in read_checkpoint(path).items() if not name.startswith(CLASSIFIER)
        }
        tables = [name for name in state if name.endswith("relative_position_bias_table")]
        resampled = [n for n in tables if n in own and len(state[n]) != len(own[n])]
        for name in resampled:
            state[name] = resample_bias(state[name], len(own[name]))
        try:
            load_state_dict(self, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if resampled:
            logger.warning("%s: relative position biases resampled to another window size", path)


def shifted_apart(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Which tokens of a shifted window come from opposite borders of the map: [W, 1, N, N] bool."""
    regions = []
    for size in (height, width):
        at = torch.arange(-(-size // window) * window, device=device)
        regions.append((at >= at.shape[0] - window).long() + (at >= at.shape[0] - window // 2).long())
    region = _to_windows((3 * regions[0][:, None] + regions[1])[None, :, :, None], window)[..., 0]
    return (region[:, :, None] != region[:, None, :])[:, None]


def resample_bias(table: Tensor, entries: int) -> Tensor:
    """A bias table [(2 * window - 1)^2, H] for another window, [entries, H], by bicubic interpolation."""
    old, new = (round(n**0.5) for n in (len(table), entries))
    maps = table.T.reshape(1, -1, old, old).float()
    maps = F.interpolate(maps, size=(new, new), mode="bicubic", align_corners=False)
    return maps.flatten(2)[0].T.to(table.dtype)


def _relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of a window's tokens, flat: [N * N]."""
    at = torch.arange(window)
    token = torch.stack(torch.meshgrid(at, at, indexing="ij")).flatten(1)
    rows, columns = token[:, :, None] - token[:, None, :] + window - 1
    return (rows * (2 * window - 1) + columns).flatten()


def _pad(x: Tensor, multiple: int) -> Tensor:
    """[B, h, w, C] with zeros at the bottom and right, up to multiples."""
    bottom, right = (-size % multiple for size in x.shape[1:3])
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def _to_windows(x: Tensor, window: int) -> Tensor:
    """[B, h, w, C] -> [B * W, N, C], windows row by row."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).reshape(-1, window * window, x.shape[-1])


def _from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """[B * W, N, C] -> [B, h, w, C]."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
