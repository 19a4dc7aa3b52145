"""ResNet backbones (He et al. 2016) with frozen batch norm, named as in torchvision or as in detectron2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

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


class ConvNorms(nn.Module):
    """Convolutions `conv1`, `conv2`, ..., each followed by a frozen norm.

    Args:
        nested: norms belong to their convolution, as in detectron2 (`conv1.norm`, `shortcut.norm`), rather
            than beside it, as in torchvision (`bn1`, `downsample.1`).
    """

    def __init__(self, nested: bool) -> None:
        super().__init__()
        self.nested = nested
        self.projects = False

    def add(self, index: int, convolution: nn.Conv2d) -> None:
        """Makes it the `index`-th, with a norm of its own."""
        norm = FrozenBatchNorm2d(convolution.out_channels)
        self.add_module(f"conv{index}", convolution)
        if self.nested:
            convolution.norm = norm
        else:
            self.add_module(f"bn{index}", norm)

    def step(self, index: int, x: Tensor) -> Tensor:
        """The `index`-th convolution and its norm."""
        convolution: Any = getattr(self, f"conv{index}")
        return _conv_norm(x, convolution, convolution.norm if self.nested else getattr(self, f"bn{index}"))

    def add_shortcut(self, convolution: nn.Conv2d) -> None:
        """Projects the block's input, where its shape is not the output's."""
        norm = FrozenBatchNorm2d(convolution.out_channels)
        if self.nested:
            convolution.norm = norm
            self.shortcut = convolution
        else:
            self.downsample = nn.ModuleList([convolution, norm])
        self.projects = True

    def identity(self, x: Tensor) -> Tensor:
        """What the block's output is added to."""
        if not self.projects:
            return x
        shortcut: Any = (self.shortcut, self.shortcut.norm) if self.nested else self.downsample
        return _conv_norm(x, *shortcut)


class BasicBlock(ConvNorms):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, project: bool, nested: bool
    ) -> None:
        super().__init__(nested)
        if dilation != 1:
            raise ValueError("dilation: only bottleneck ResNets (50, 101) can be dilated")
        self.add(1, _conv(inputs, width, 3, stride))
        self.add(2, _conv(width, width, 3))
        if project:
            self.add_shortcut(_conv(inputs, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.step(1, x))
        return F.relu_(self.step(2, y).add_(self.identity(x)))


class Bottleneck(ConvNorms):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the 3x3 carries stride and dilation."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, project: bool, nested: bool
    ) -> None:
        super().__init__(nested)
        outputs = width * self.expansion
        self.add(1, _conv(inputs, width, 1))
        self.add(2, _conv(width, width, 3, stride, dilation))
        self.add(3, _conv(width, outputs, 1))
        if project:
            self.add_shortcut(_conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.step(1, x))
        y = F.relu_(self.step(2, y))
        return F.relu_(self.step(3, y).add_(self.identity(x)))


class ResNet(ConvNorms):
    """A ResNet without its classifier.

    Args:
        dilation: the last stage keeps stride 1 and dilates instead ("DC5"), so features have stride 16, not
            32.
        detectron2: names as in detectron2 (`stem.conv1`, `res2.0.conv1.norm`), not as in torchvision.
        frozen: stem and first stage get no gradient, as in the official DETR.
    """

    def __init__(
        self,
        name: str = "resnet50",
        dilation: bool = False,
        *,
        detectron2: bool = False,
        frozen: bool = True,
    ) -> None:
        super().__init__(nested=detectron2)
        if name not in ARCHITECTURES:
            raise ValueError(f"name: expected one of {', '.join(ARCHITECTURES)}; got {name!r}")
        self.name = name
        depths, bottleneck = ARCHITECTURES[name]
        block = Bottleneck if bottleneck else BasicBlock
        if detectron2:
            self.stem = ConvNorms(nested=True)
        self._stem.add(1, _conv(3, 64, 7, stride=2))
        widths = (64, 128, 256, 512)
        inputs = (64, *(width * block.expansion for width in widths[:3]))
        self.stages = [f"res{n + 2}" if detectron2 else f"layer{n + 1}" for n in range(4)]
        for n, stage in enumerate(self.stages):
            stride, dilate = (1 if n == 0 else 2), dilation and n == 3
            self.add_module(
                stage, _stage(block, inputs[n], widths[n], depths[n], stride, dilate, self.nested)
            )
        self.channels = tuple(width * block.expansion for width in widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if frozen:
            self._stem.get_submodule("conv1").requires_grad_(False)
            self.get_submodule(self.stages[0]).requires_grad_(False)

    @property
    def _stem(self) -> ConvNorms:
        return self.stem if self.nested else self

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the outputs of the four stages, strides 4, 8, 16 and 32 (16 when dilated)."""
        # channels last is the faster layout for convolutions, and makes features -> tokens a view
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu_(self._stem.step(1, x))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = getattr(self, stage)(x)
            features.append(x)
        return features

    def load_official(self, path: str | Path) -> None:
        """Loads an ImageNet ResNet without its classifier, named as in torchvision or detectron2.

        Raises ValueError for any other file.
        """
        state = {
            name: tensor
            for name, tensor in read_checkpoint(path).items()
            if not re.search(r"^(stem\.)?fc\.|num_batches_tracked$", name)
        }
        nested = "stem.conv1.weight" in state
        if nested != self.nested:
            # the two differ in names, not in order
            with torch.device("meta"):
                other = ResNet(self.name, detectron2=nested)
            names = dict(zip(other.state_dict(), self.state_dict(), strict=True))
            state = {names.get(name, name): tensor for name, tensor in state.items()}
        try:
            load_state_dict(self, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _stage(
    block: type[BasicBlock | Bottleneck],
    inputs: int,
    width: int,
    depth: int,
    stride: int,
    dilate: bool,
    nested: bool,
) -> nn.Sequential:
    """`depth` blocks; a dilated stage trades its stride for dilation, which starts after the first block."""
    outputs = width * block.expansion
    project = stride != 1 or inputs != outputs
    first = block(inputs, width, 1 if dilate else stride, 1, project, nested)
    rest = (block(outputs, width, 1, stride if dilate else 1, False, nested) for _ in range(1, depth))
    return nn.Sequential(first, *rest)


def _conv_norm(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """norm(conv(x)) in one pass over the features: a frozen norm folds into weights and bias."""
    scale, shift = norm.scale_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation)
