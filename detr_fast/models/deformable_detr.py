"""Deformable DETR: deformable transformers for end-to-end object detection (Zhu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detr_fast.models.backbones import BACKBONES, backbone_in, build_body
from detr_fast.models.common import ModelConfig, check_dimensions, check_multiple, official_options
from detr_fast.models.deformable_transformer import DeformableTransformer, Levels, best_positions
from detr_fast.models.multi_scale import GROUPS, MultiScaleModel, focal_heads, transformer_sizes
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.models.transformer import ACTIVATIONS
from detr_fast.structures import PaddedImages, Predictions


@dataclass(frozen=True)
class DeformableDETRConfig(ModelConfig):
    """The sizes of a Deformable DETR; names and defaults are those of the official options.

    The shapes of weights determine all but nheads (which the numbers of points rest on), dropout, activation,
    dilation, aux_loss and, with two stages, num_queries.

    Args:
        backbone: a ResNet, a Swin, or "conv_stem", which needs no pre-trained weights.
        num_classes: the largest category id + 1; there is no class "no object".
        num_feature_levels: 1 (the last backbone stage alone), or 3 and more: the last three stages and, for
            each further level, a convolution of stride 2.
        enc_n_points, dec_n_points: sampled points of each head and level.
        with_box_refine: each decoder layer corrects the boxes of the one before it.
        two_stage: queries come from the encoder's proposals; needs `with_box_refine`.
        aux_loss: predictions of all decoder layers rather than of the last alone.
    """

    model: ClassVar[str] = "Deformable DETR"

    backbone: str = "resnet50"
    dilation: bool = False
    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    dim_feedforward: int = 1024
    dropout: float = 0.1
    activation: str = "relu"
    num_queries: int = 300
    num_classes: int = 91
    num_feature_levels: int = 4
    enc_n_points: int = 4
    dec_n_points: int = 4
    with_box_refine: bool = False
    two_stage: bool = False
    aux_loss: bool = True

    def __post_init__(self) -> None:
        check_dimensions(
            self,
            {"backbone": BACKBONES, "activation": ACTIVATIONS},
            ("enc_layers", "dec_layers", "num_feature_levels", "enc_n_points", "dec_n_points"),
        )
        # one channel a group would leave a map of one pixel nothing to normalise by
        check_multiple(self, "hidden_dim", GROUPS, " for the norms", least=2)
        if self.num_feature_levels == 2:
            raise ValueError("num_feature_levels: expected 1, or at least 3; got 2")
        if self.two_stage and not self.with_box_refine:
            raise ValueError("two_stage: expected with_box_refine as well; got with_box_refine = False")

    @classmethod
    def from_official_args(cls, args: Any, num_classes: int = 91) -> DeformableDETRConfig:
        """From the options of an official training run.

        Args:
            args: a namespace or mapping, as official training checkpoints carry it.
            num_classes: not among them; 91 for COCO.
        """
        values = args if isinstance(args, Mapping) else vars(args)
        if values.get("position_embedding", "sine") != "sine":
            raise ValueError(
                f"args: expected position_embedding 'sine'; got {values['position_embedding']!r}"
            )
        return cls(**{"num_classes": num_classes, **official_options(cls, values)})

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        two_stage = "transformer.enc_output.weight" in state
        return {
            **transformer_sizes(state, overrides.get("nheads", cls.nheads)),
            "backbone": overrides.get("backbone") or backbone_in(state),
            **({} if two_stage else {"num_queries": state["query_embed.weight"].shape[0]}),
            "num_classes": state["class_embed.0.weight"].shape[0],
            "with_box_refine": two_stage or "transformer.decoder.bbox_embed.0.layers.0.weight" in state,
            "two_stage": two_stage,
        }


class DeformableDETR(MultiScaleModel):
    """A convolutional backbone, a deformable transformer, and for each object query class scores and a box.

    Modules carry the official names, so official state dicts fit as they are, doubled names included.

    Args:
        backbone_weights: a torchvision ResNet or Microsoft Swin file to start the backbone from.
    """

    def __init__(self, config: DeformableDETRConfig, *, backbone_weights: str | Path | None = None) -> None:
        body = build_body(config.backbone, config.dilation, backbone_weights)
        channels, levels = config.hidden_dim, config.num_feature_levels
        # positions count from the centre of the first pixel
        position_encoding = PositionEncodingSine(channels, offset=-0.5)
        super().__init__(body, 1 if levels == 1 else 3, levels, channels, position_encoding)
        self.config = config
        self.transformer = DeformableTransformer(
            channels,
            config.nheads,
            config.enc_layers,
            config.dec_layers,
            config.dim_feedforward,
            config.dropout,
            config.activation,
            config.num_feature_levels,
            config.enc_n_points,
            config.dec_n_points,
            config.with_box_refine,
            config.two_stage,
        )
        self.class_embed, self.bbox_embed = _heads(config)
        # refining decoders own the heads as well: official state dicts hold them under both names
        if config.with_box_refine:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if config.two_stage:
            self.transformer.decoder.class_embed = self.class_embed
        else:
            self.query_embed = nn.Embedding(config.num_queries, 2 * channels)

    def forward(self, images: PaddedImages | Tensor | Sequence[Tensor]) -> Predictions:
        """Classes and boxes of every query.

        Args:
            images: a padded batch, a [B, 3, H, W] tensor without padding, or [3, H_b, W_b] tensors;
                normalised.

        Returns:
            Logits [L, B, Q, K] and boxes [L, B, Q, 4], relative to each image without its padding; with two
            stages also the encoder's proposals, one for each of the S positions, as `encoder`.
        """
        features, positions, levels = self.feature_levels(images)
        memory = self.transformer.encode(features, positions, levels)
        if self.config.two_stage:
            proposals, best = self._propose(memory, levels)
            queries = self.transformer.proposed_queries(best, memory.dtype)
        else:
            proposals = None
            queries = self.transformer.learned_queries(self.query_embed.weight, memory.shape[0])
        states, boxes = self.transformer.decoder(*queries, memory, levels, self.bbox_embed)
        scores = torch.stack([head(x) for head, x in zip(self.class_embed, states, strict=False)])
        if not self.config.aux_loss:
            scores, boxes = scores[-1:], boxes[-1:]
        return Predictions(scores, boxes, proposals)

    def _propose(self, memory: Tensor, levels: Levels) -> tuple[Predictions, Tensor]:
        """What the encoder proposes, and the best Q boxes before the sigmoid, constants: [B, Q, 4]."""
        count = self.config.num_queries
        class_head, box_head = self.class_embed[-1], self.bbox_embed[-1]
        logits, boxes = self.transformer.propose(memory, levels, class_head, box_head)
        # class 0 means any object here
        best = best_positions(logits[..., 0], count, levels)
        best_boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        return Predictions(logits[None], boxes.sigmoid()[None]), best_boxes


def parameter_groups(
    model: nn.Module, lr: float = 2e-4, lr_backbone: float = 2e-5, lr_linear_proj_mult: float = 0.1
) -> list[dict[str, Any]]:
    """The official learning rates, for an optimizer: the trainable parameters in three groups.

    The projections that predict where to sample (`sampling_offsets`, `reference_points`) learn at `lr` times
    `lr_linear_proj_mult`, the backbone at `lr_backbone`, everything else at `lr`.
    """
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "where": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            groups["backbone"].append(parameter)
        elif "sampling_offsets" in name or "reference_points" in name:
            groups["where"].append(parameter)
        else:
            groups["rest"].append(parameter)
    rates = {"rest": lr, "backbone": lr_backbone, "where": lr * lr_linear_proj_mult}
    return [{"params": parameters, "lr": rates[key]} for key, parameters in groups.items()]


def _heads(config: DeformableDETRConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The class and box head of each decoder layer, and one more for the encoder's proposals.

    Without refinement all layers share one. Boxes start at their reference.
    """
    class_head, box_head = focal_heads(config.hidden_dim, config.num_classes)
    count = config.dec_layers + config.two_stage
    if config.with_box_refine:
        heads = [nn.ModuleList(deepcopy(head) for _ in range(count)) for head in (class_head, box_head)]
    else:
        heads = [nn.ModuleList([head] * count) for head in (class_head, box_head)]
    if not config.two_stage:
        # a point has no size to start from: sigmoid(-2) = 0.12 of the image
        nn.init.constant_(heads[1][0].get_parameter("layers.2.bias")[2:], -2.0)
    return heads[0], heads[1]
