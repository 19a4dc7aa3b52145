"""The backbones that every model can use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from detr_fast.checkpoints import load_state_dict, read_checkpoint
from detr_fast.models import resnet, swin
from detr_fast.models.conv_stem import STEMS, ConvStem
from detr_fast.models.resnet import ResNet
from detr_fast.models.swin import Swin

BACKBONES = (*resnet.ARCHITECTURES, *swin.ARCHITECTURES, *STEMS)
TIMM = "timm:"  # before the name of one of timm's models


class TimmBackbone(nn.Module):
    """A model of timm, if that is installed; its features of strides 4 and more."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"backbone: {TIMM}{name} needs the package timm") from error
        self.body = timm.create_model(name, features_only=True)
        info = self.body.feature_info
        self.kept = [n for n, stride in enumerate(info.reduction()) if stride >= 4]
        if len(self.kept) < 2:
            raise ValueError(f"backbone: expected features of several strides; {name} has {info.reduction()}")
        self.channels = tuple(info.channels()[n] for n in self.kept)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.body(images)
        return [features[n] for n in self.kept]

    def load_official(self, path: str | Path) -> None:
        """Loads a file of timm, whose classifier is left out; ValueError for any other file."""
        missing = load_state_dict(self.body, read_checkpoint(path), strict=False).missing
        if missing:
            raise ValueError(f"{path}: expected the entries of the backbone; {missing[0]} is missing")


def build_body(
    name: str,
    dilation: bool,
    weights: str | Path | None,
    *,
    detectron2: bool = False,
    stages: int | None = None,
) -> ConvStem | ResNet | Swin | TimmBackbone:
    """A backbone, which returns a list of features and has their `channels`.

    Args:
        name: one of `BACKBONES`, or "timm:NAME".
        dilation: of the last stage of a ResNet with bottlenecks.
        weights: a file to start from: torchvision's or detectron2's of a ResNet, Microsoft's of a Swin,
            timm's.
        detectron2: a ResNet with the names of detectron2, and no part of it frozen but the norms.
        stages: how many of the last stages count: a Swin has no norms for others; None: all.
    """
    body: ConvStem | ResNet | Swin | TimmBackbone
    if name.startswith(TIMM):
        body = TimmBackbone(name.removeprefix(TIMM))
    elif name in STEMS:
        body = ConvStem(*STEMS[name])
    elif name in swin.ARCHITECTURES:
        body = Swin(name, outputs=stages)
    else:
        body = ResNet(name, dilation, detectron2=detectron2, frozen=not detectron2)
    if weights is None:
        return body
    if isinstance(body, ConvStem):
        raise ValueError(f"backbone_weights: expected a ResNet or Swin backbone; got {name}")
    body.load_official(weights)
    return body


def size_multiple(body: nn.Module) -> int:
    """What the sides of a batch must be multiples of, so that nothing depends on them."""
    return body.size_multiple if isinstance(body, ConvStem) else 1


def features_of(cnn: nn.Module, pixels: Tensor, padding: Tensor | None) -> list[Tensor]:
    """A backbone's features, the finest first; of those here the stem alone takes note of padding.

    Args:
        cnn: the backbone, maybe alone inside another module.
        pixels: [B, 3, H, W].
        padding: [B, H, W], True = padding.
    """
    body = cnn[0] if isinstance(cnn, nn.Sequential) else cnn
    return body(pixels, padding) if isinstance(body, ConvStem) else cnn(pixels)


def backbone_in(state: Mapping[str, Tensor], prefix: str = "backbone.0.body.") -> str:
    """The name of the ResNet or Swin under `prefix`; KeyError or StopIteration where there is none."""
    if f"{prefix}patch_embed.proj.weight" in state:
        embed_dim = state[f"{prefix}patch_embed.proj.weight"].shape[0]
        depths = tuple(count_modules(state, f"{prefix}layers.{n}.blocks") for n in range(4))
        table = state[f"{prefix}layers.0.blocks.0.attn.relative_position_bias_table"]
        return next(
            name
            for name, sizes in swin.ARCHITECTURES.items()
            if (sizes.embed_dim, sizes.depths) == (embed_dim, depths)
            and len(table) == (2 * sizes.window_size - 1) ** 2
        )
    first, third = ("res2", "res4") if f"{prefix}stem.conv1.weight" in state else ("layer1", "layer3")
    depth = count_modules(state, prefix + third)
    bottleneck = f"{prefix}{first}.0.conv3.weight" in state
    return next(
        n for n, a in resnet.ARCHITECTURES.items() if (a.depths[2], a.bottleneck) == (depth, bottleneck)
    )


def count_modules(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered modules directly under `prefix`."""
    start = len(prefix) + 1
    return len({name[start:].split(".")[0] for name in state if name.startswith(f"{prefix}.")})
