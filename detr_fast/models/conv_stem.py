"""A few strided convolutions as a backbone for small images, trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn


class ConvStem(nn.Module):
    """Three 3x3 convolutions of stride 2 and a residual pair, each with group norm.

    Transformers train more readily on such a stem than on patches (Xiao et al. 2021, "Early Convolutions Help
    Transformers See Better"). Unlike the ResNets it has no frozen parts, so it needs no pre-trained weights.
    """

    channels = (32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(*_conv_norm(i, o, stride=2), nn.ReLU())
            for i, o in zip(inputs, self.channels, strict=True)
        )
        width = self.channels[-1]
        self.residual = nn.Sequential(*_conv_norm(width, width), nn.ReLU(), *_conv_norm(width, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> features of strides 2, 4 and 8."""
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = (x + self.residual(x)).relu()
        return features


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return convolution, nn.GroupNorm(outputs // 8, outputs)
