"""DETR for segmentation (Carion et al. 2020, section 4.4): a DETR with a mask head on its attention maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.models.common import in_inference
from detr_fast.models.detr import DETR, DETRConfig, Stages
from detr_fast.structures import PaddedImages, Predictions

GROUPS = 8  # of the mask head's norms
CHUNK = 4  # queries whose masks are computed at once where no gradient is wanted: they stay in cache


@dataclass(frozen=True)
class DETRSegmConfig(DETRConfig):
    """The sizes of the detector, and whether it learns.

    The shapes of weights determine all but dropout, activation, dilation, aux_loss and frozen_detector.

    Args:
        frozen_detector: the detector keeps its weights and only the mask head learns, as the official option
            `--frozen-weights` has it: load a trained detector with `DETRSegm.load_detector`.
    """

    model: ClassVar[str] = "DETR for segmentation"

    frozen_detector: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim < 16:
            raise ValueError(f"hidden_dim: expected at least 16, for the mask head; got {self.hidden_dim}")

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        nheads = state["mask_head.lay1.weight"].shape[0] - state["bbox_attention.k_linear.weight"].shape[0]
        detector = {name.removeprefix("detr."): t for name, t in state.items() if name.startswith("detr.")}
        return {"nheads": nheads, **super().sizes_in(detector, overrides)}


class DETRSegm(nn.Module):
    """A DETR, attention maps of its last layer's queries over the encoded image, and a mask from each.

    Modules carry the official names, so official state dicts fit as they are.

    Args:
        backbone_weights: a torchvision ResNet or Microsoft Swin file to start the backbone from.
    """

    def __init__(self, config: DETRSegmConfig, *, backbone_weights: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.detr = DETR(config, backbone_weights=backbone_weights)
        self.bbox_attention = AttentionMap(config.hidden_dim, config.nheads)
        self.size_multiple = self.detr.size_multiple
        finer = self.detr.feature_channels[-2::-1]
        self.mask_head = MaskHead(config.hidden_dim, config.nheads, finer)
        self.frozen = False
        if config.frozen_detector:
            self.freeze_detector()

    def forward(
        self, images: PaddedImages | Tensor | Sequence[Tensor], *, min_score: float | None = None
    ) -> Predictions:
        """Classes, boxes and masks of every query.

        Args:
            images: a padded batch, a [B, 3, H, W] tensor without padding, or [3, H_b, W_b] tensors;
                normalised.
            min_score: most queries predict "no object", and masks take most of the time. With a score, the
                result holds the last layer alone, and of its queries only as many as the image with the most
                has with a class of a higher probability, for each image the best: at least 1, in their own
                order.

        Returns:
            Logits [L, B, Q, K + 1], boxes [L, B, Q, 4], relative to each image without its padding, and of
            the last layer mask logits [1, B, Q, h, w] over the padded images, at the backbone's finest
            resolution (stride 4; 2 with "conv_stem_8").
        """
        stages = self.detr.stages(images)
        found = self.detr.heads(stages.hs)
        if min_score is None:
            return Predictions(found.logits, found.boxes, masks=self.masks(stages, stages.hs[-1])[None])
        if torch.jit.is_tracing():
            raise ValueError("min_score: expected None; a trace would keep this image's number of masks")
        scores = found.logits[-1].softmax(-1)[..., :-1].amax(-1)
        count = max(1, int((scores > min_score).sum(1).max()))
        best = scores.topk(count, dim=1).indices.sort(dim=1).values[..., None]
        logits, boxes, hs = (x[-1].take_along_dim(best, 1) for x in (found.logits, found.boxes, stages.hs))
        return Predictions(logits[None], boxes[None], masks=self.masks(stages, hs)[None])

    def masks(self, stages: Stages, queries: Tensor) -> Tensor:
        """Mask logits [B, Q, h, w] of the decoder's `queries` [B, Q, C]."""
        maps = self.bbox_attention(queries, stages.memory, stages.mask)
        return self.mask_head(stages.projected, maps, stages.features[-2::-1])

    def freeze_detector(self) -> None:
        """From now on the detector gets no gradients and stays in evaluation mode, without dropout."""
        self.frozen = True
        self.detr.requires_grad_(False)
        self.detr.eval()

    def load_detector(self, state: Mapping[str, Tensor]) -> LoadReport:
        """Loads the state dict of a trained DETR into the detector; ValueError for any other model's."""
        return load_state_dict(self.detr, state)

    def train(self, mode: bool = True) -> DETRSegm:
        super().train(mode)
        if self.frozen:
            self.detr.eval()
        return self


class AttentionMap(nn.Module):
    """Where queries attend to in the image: attention weights alone, without values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(channels, channels)
        self.k_linear = nn.Linear(channels, channels)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """queries [B, Q, C]; memory [B, C, h, w]; mask [B, h, w] bool, True = padding -> [B, Q, H, h, w].

        The weights of all heads together sum to 1.
        """
        q = self.q_linear(queries).unflatten(-1, (self.heads, -1))
        k = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1))
        logits = torch.einsum("bqhd,bshd->bqhs", q * q.shape[-1] ** -0.5, k)
        if mask is not None:
            logits = logits.masked_fill(mask.flatten(1)[:, None, None], -math.inf)
        weights = logits.flatten(2).softmax(-1).to(logits.dtype)
        return weights.reshape(*logits.shape[:3], *memory.shape[2:])


class MaskHead(nn.Module):
    """A feature pyramid from attention maps to masks, one for each query.

    Each step halves the channels, goes up to the next finer backbone features and adds them. What does not
    depend on the query is computed once an image, never repeated for each query.

    Args:
        channels, heads: of the projected image and of the attention maps.
        finer: channels of the backbone's features but the last, coarsest first; officially three.
    """

    def __init__(self, channels: int, heads: int, finer: Sequence[int]) -> None:
        super().__init__()
        self.channels = channels
        self.levels = len(finer)
        inputs = channels + heads
        widths = [inputs, *(channels >> n for n in range(1, self.levels + 2))]
        for n, width in enumerate(widths, start=1):
            self.add_module(f"lay{n}", nn.Conv2d(inputs, width, 3, padding=1))
            # fewer groups where the official eight would not fit
            self.add_module(f"gn{n}", nn.GroupNorm(math.gcd(GROUPS, width), width))
            inputs = width
        self.out_lay = nn.Conv2d(inputs, 1, 3, padding=1)
        for n, given in enumerate(finer, start=1):
            self.add_module(f"adapter{n}", nn.Conv2d(given, widths[n], 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, image: Tensor, maps: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """image [B, C, h, w]; maps [B, Q, H, h, w]; finer: features, coarsest first -> [B, Q, h', w']."""
        first: Any = self.get_submodule("lay1")
        weights = first.weight  # no `get_parameter`: torch.func puts plain tensors in the parameters' place
        # a convolution is linear: that of the image is the same for every query
        image = F.conv2d(image, weights[:, : self.channels], first.bias, padding=1)
        finer = [self.get_submodule(f"adapter{n}")(x) for n, x in enumerate(finer, start=1)]
        if not in_inference():
            return self._masks(image, maps, weights[:, self.channels :], finer)
        chunks = maps.split(CHUNK, dim=1)
        return torch.cat([self._masks(image, m, weights[:, self.channels :], finer) for m in chunks], dim=1)

    def _masks(self, image: Tensor, maps: Tensor, weights: Tensor, finer: Sequence[Tensor]) -> Tensor:
        batch = maps.shape[:2]
        x = _add_to_each(F.conv2d(maps.flatten(0, 1), weights, padding=1), image, batch)
        x = F.relu_(self.get_submodule("gn1")(x))
        for n in range(2, self.levels + 3):
            x = self.get_submodule(f"lay{n}")(x)
            x = F.relu_(self.get_submodule(f"gn{n}")(x))
            if n < self.levels + 2:
                x = F.interpolate(x, size=finer[n - 2].shape[2:], mode="nearest")
                x = _add_to_each(x, finer[n - 2], batch)
        return self.out_lay(x).reshape(*batch, *x.shape[2:])


def _add_to_each(x: Tensor, image: Tensor, batch: Sequence[int]) -> Tensor:
    """x [B * Q, C, h, w], in place, plus each image's [B, C, h, w]."""
    return x.unflatten(0, batch).add_(image[:, None]).flatten(0, 1)
