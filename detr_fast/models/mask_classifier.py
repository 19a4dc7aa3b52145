"""What MaskFormer and Mask2Former share: backbone, pixel decoder, and a class and a mask for each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detr_fast.checkpoints import official_names
from detr_fast.models.backbones import BACKBONES, backbone_in
from detr_fast.models.common import (
    MLP,
    Config,
    ModelConfig,
    check_dimensions,
    check_multiple,
    pixels_and_mask,
)
from detr_fast.models.pixel_decoder import GROUPS, xavier_fill
from detr_fast.structures import MaskPredictions, PaddedImages

NO_DECAY_TABLES = ("relative_position_bias_table", "absolute_pos_embed")
# in front of the names of their weights
PIXEL_DECODER, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class MaskClassifierConfig(ModelConfig):
    """The sizes of a mask classifier.

    Args:
        backbone: a ResNet, a Swin, "timm:NAME" where timm is installed, or "conv_stem", which
            needs no pre-trained weights; "conv_stem_8" for small images has masks at stride 2, not 4, and the
            transformer's maps at 4 and 8.
        num_classes: "no object" not counted.
        hidden_dim, nheads, dec_layers, dim_feedforward: of the transformer decoder.
        conv_dim, enc_layers, enc_dim_feedforward, dropout: of the pixel decoder and its encoder.
        mask_dim: channels of mask embeddings and mask features, whose product is the mask.
        pre_norm: layers normalise their input rather than their output.
        enforce_input_projection: project the maps for the decoder even where their channels fit.
    """

    backbone: str = "resnet50"
    num_classes: int = 133
    num_queries: int = 100
    hidden_dim: int = 256
    conv_dim: int = 256
    mask_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    enc_dim_feedforward: int = 2048
    dim_feedforward: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    enforce_input_projection: bool = False

    positive: ClassVar[tuple[str, ...]] = ("conv_dim", "mask_dim", "dec_layers", "enc_dim_feedforward")

    def __post_init__(self) -> None:
        check_dimensions(self, {"backbone": BACKBONES}, self.positive, ("enc_layers",))
        # one channel a group would leave a map of one pixel nothing to normalise by
        check_multiple(self, "conv_dim", GROUPS, " for the norms", least=2)
        check_multiple(self, "conv_dim", "nheads")
        check_multiple(self, "hidden_dim", 4, " for the positions")

    @classmethod
    def from_state_dict(cls: type[Config], state: Mapping[str, Tensor], **overrides: Any) -> Config:
        return super().from_state_dict(official_names(state), **overrides)

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        classes = state[f"{PREDICTOR}class_embed.weight"]
        mask_dim, conv_dim = state[f"{PIXEL_DECODER}mask_features.weight"].shape[:2]
        return {
            "backbone": overrides.get("backbone") or backbone_in(state, "backbone."),
            "num_classes": classes.shape[0] - 1,
            "hidden_dim": classes.shape[1],
            "num_queries": state[f"{PREDICTOR}query_embed.weight"].shape[0],
            "mask_dim": mask_dim,
            "conv_dim": conv_dim,
        }


class MaskPredictor(nn.Module):
    """The heads of a transformer decoder: a class and a mask embedding for each query."""

    def __init__(self, channels: int, mask_dim: int, num_classes: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(channels, num_classes + 1)
        self.mask_embed = MLP(channels, channels, mask_dim, layers=3)

    def predict(self, states: Tensor, embeddings: Tensor, mask_features: Tensor) -> MaskPredictions:
        """states [L, B, Q, C], mask embeddings [L, B, Q, M] and mask features [B, M, h, w] -> predictions."""
        masks = torch.einsum("lbqm,bmhw->lbqhw", embeddings, mask_features)
        return MaskPredictions(self.class_embed(states), masks)


class MaskClassifier(nn.Module):
    """Backbone, pixel decoder and transformer decoder ("predictor"), named as in the official code.

    size_multiple: images given as a list are padded to a multiple of it, as officially.
    """

    size_multiple = 1
    backbone: nn.Module
    sem_seg_head: nn.ModuleDict

    def forward(
        self, images: PaddedImages | Tensor | Sequence[Tensor], all_layers: bool | None = None
    ) -> MaskPredictions:
        """Classes and masks of every query.

        Args:
            images: a padded batch, a [B, 3, H, W] tensor, or [3, H_b, W_b] tensors; normalised.
            all_layers: predictions of all decoder layers rather than of the last alone; by default in
                training.

        Returns:
            Logits [L, B, Q, K + 1] and mask logits [L, B, Q, h, w] over the padded images, at the stride of
            the backbone's finest features, 4 or 2 (sizes rounded up).
        """
        if not isinstance(images, PaddedImages | Tensor):
            images = PaddedImages.from_list(images, multiple=self.size_multiple)
        features = self.backbone(pixels_and_mask(images)[0])
        memory, mask_features = self.sem_seg_head["pixel_decoder"](features)
        all_layers = self.training if all_layers is None else all_layers
        return self.sem_seg_head["predictor"](memory, mask_features, all_layers)

    def parameter_groups(
        self, lr: float = 1e-4, lr_backbone: float = 1e-5, weight_decay: float = 0.05
    ) -> list[dict[str, Any]]:
        """The official groups for AdamW: the backbone at its own rate, norms and embeddings without decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for path, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                keep = isinstance(module, (*NORMS, nn.Embedding)) or name in NO_DECAY_TABLES
                rate = lr_backbone if path.startswith("backbone") else lr
                groups.setdefault((rate, 0.0 if keep else weight_decay), []).append(parameter)
        return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def input_projection(inputs: int, channels: int, enforce: bool) -> nn.Module:
    """A 1x1 convolution where the channels differ, or where it is enforced."""
    if inputs == channels and not enforce:
        return nn.Identity()
    projection = nn.Conv2d(inputs, channels, 1)
    xavier_fill(projection)
    return projection
