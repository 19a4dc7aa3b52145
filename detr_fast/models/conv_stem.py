"""A few strided convolutions as a backbone that is trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# for each name the widths of the stages, whose strides are 2, 4, ..., and how many of the last are features
STEMS: dict[str, tuple[tuple[int, ...], int]] = {
    "conv_stem": ((32, 64, 128, 192, 256), 4),  # strides 4 to 32, as the ResNets
    "conv_stem_8": ((32, 64, 128), 3),  # strides 2 to 8, for drawings of 64 pixels
}
RESIDUAL_STRIDE = 8  # finer stages have no residual pair, which costs most there


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, from stride 8 on each with a residual pair, and layer norms.

    Transformers train more readily on such a stem than on patches (Xiao et al. 2021, "Early Convolutions Help
    Transformers See Better"). Unlike the ResNets it has no frozen parts, so it needs no pre-trained weights.
    Its norms see one position each and padding is zero before each convolution, as beyond an image's border:
    features do not depend on the batch where its sides are multiples of `size_multiple`.

    Args:
        widths: channels of the stages.
        outputs: how many of the last stages are features.
    """

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.channels = tuple(widths[-outputs:])
        self.size_multiple = 2 ** len(widths)
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(
            _Stage(i, o, residual=2 ** (n + 1) >= RESIDUAL_STRIDE)
            for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, padding: Tensor | None = None) -> list[Tensor]:
        """[B, 3, H, W] and its padding [B, H, W], True = padding -> features, the finest first."""
        x, features = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            # a position counts where the pixel at its centre does
            padding = None if padding is None else padding[:, ::2, ::2]
            x = stage(x, padding)
            features.append(x)
        return features[-len(self.channels) :]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of maps [B, C, h, w], which so do not see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """A convolution of stride 2 and maybe two more around which there is a short cut."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.enter = _ConvNorm(inputs, outputs, stride=2)
        self.residual = nn.ModuleList(_ConvNorm(outputs, outputs) for _ in range(2 * residual))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self.enter(x, padding).relu()
        if not self.residual:
            return x
        first, second = self.residual
        return (x + second(first(x, padding).relu(), padding)).relu()


class _ConvNorm(nn.Module):
    """A convolution, a layer norm over the channels of each position, and zeros in the padding."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self.norm(self.convolution(x))
        return x if padding is None else x.masked_fill(padding[:, None], 0)
