"""ResNet backbones (He et al. 2016) with frozen batch norm, named as in torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import load_state_dict, read_checkpoint


class Architecture(NamedTuple):
    """Blocks of each stage, and whether they are bottlenecks."""

    depths: tuple[int, int, int, int]
    bottleneck: bool


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), False),
    "resnet34": Architecture((3, 4, 6, 3), False),
    "resnet50": Architecture((3, 4, 6, 3), True),
    "resnet101": Architecture((3, 4, 23, 3), True),
}


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine terms: four buffers, no parameters."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """The norm as x * scale + shift, both [channels]."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        if dilation != 1:
            raise ValueError("dilation: only bottleneck ResNets (50, 101) can be dilated")
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = FrozenBatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(_conv_norm(x, self.conv1, self.bn1))
        y = _conv_norm(y, self.conv2, self.bn2)
        return F.relu_(y.add_(_identity(x, self.downsample)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the 3x3 carries stride and dilation."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, dilation)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = FrozenBatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(_conv_norm(x, self.conv1, self.bn1))
        y = F.relu_(_conv_norm(y, self.conv2, self.bn2))
        y = _conv_norm(y, self.conv3, self.bn3)
        return F.relu_(y.add_(_identity(x, self.downsample)))


class ResNet(nn.Module):
    """A ResNet without its classifier.

    dilation: the last stage keeps stride 1 and dilates instead ("DC5"), so features have stride 16, not 32.
    Stem and first stage get no gradient, as in the official DETR.
    """

    def __init__(self, name: str = "resnet50", dilation: bool = False) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            raise ValueError(f"name: expected one of {', '.join(ARCHITECTURES)}; got {name!r}")
        depths, bottleneck = ARCHITECTURES[name]
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = _conv(3, 64, 7, stride=2)
        self.bn1 = FrozenBatchNorm2d(64)
        widths = (64, 128, 256, 512)
        inputs = (64, *(width * block.expansion for width in widths[:3]))
        self.layer1 = _stage(block, inputs[0], widths[0], depths[0], stride=1)
        self.layer2 = _stage(block, inputs[1], widths[1], depths[1], stride=2)
        self.layer3 = _stage(block, inputs[2], widths[2], depths[2], stride=2)
        self.layer4 = _stage(block, inputs[3], widths[3], depths[3], stride=2, dilate=dilation)
        self.channels = tuple(width * block.expansion for width in widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in (self.conv1, self.layer1):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the outputs of the four stages, strides 4, 8, 16 and 32 (16 when dilated)."""
        # channels last is the faster layout for convolutions, and makes features -> tokens a view
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu_(_conv_norm(x, self.conv1, self.bn1))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features

    def load_torchvision(self, path: str | Path) -> None:
        """Loads a torchvision ResNet file, without its classifier; ValueError for any other file."""
        state = {
            name: tensor
            for name, tensor in read_checkpoint(path).items()
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
        }
        try:
            load_state_dict(self, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.ModuleList:
    return nn.ModuleList([_conv(inputs, outputs, 1, stride), FrozenBatchNorm2d(outputs)])


def _identity(x: Tensor, shortcut: nn.ModuleList | None) -> Tensor:
    return x if shortcut is None else _conv_norm(x, *shortcut)


def _stage(
    block: type[BasicBlock | Bottleneck],
    inputs: int,
    width: int,
    depth: int,
    stride: int,
    dilate: bool = False,
) -> nn.Sequential:
    """`depth` blocks; a dilated stage trades its stride for dilation, which starts after the first block."""
    first = block(inputs, width, 1 if dilate else stride, 1, stride != 1 or inputs != width * block.expansion)
    rest = (block(width * block.expansion, width, 1, stride if dilate else 1, False) for _ in range(1, depth))
    return nn.Sequential(first, *rest)


def _conv_norm(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """norm(conv(x)) in one pass over the features: a frozen norm folds into weights and bias."""
    scale, shift = norm.scale_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation)
