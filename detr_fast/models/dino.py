"""DINO: DETR with improved denoising anchor boxes (Zhang et al. 2022, arXiv:2203.03605).

What differs from a two-stage Deformable DETR with refinement: queries start from the boxes that the encoder
proposes and from learned contents (mixed query selection, section 3.4), their positions are waves of their
boxes, a layer's box learns from the next layer's too (look forward twice, section 3.5), and training adds
denoising queries (`detr_fast.models.denoising`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detr_fast.checkpoints import is_detrex, official_names
from detr_fast.models.backbones import BACKBONES, backbone_in, build_body, count_modules
from detr_fast.models.common import MLP, ModelConfig, check_dimensions, check_multiple, official_options
from detr_fast.models.deformable_transformer import (
    DecoderLayer,
    DeformableEncoder,
    Levels,
    at_least_float32,
    best_positions,
    box_waves,
    inverse_sigmoid,
    proposal_squares,
    relative_box,
)
from detr_fast.models.denoising import ContrastiveDenoising, Noise
from detr_fast.models.multi_scale import GROUPS, MultiScaleModel, focal_heads, transformer_sizes
from detr_fast.models.position_encoding import PositionEncodingSine
from detr_fast.models.swin import ARCHITECTURES as SWINS
from detr_fast.models.transformer import ACTIVATIONS
from detr_fast.structures import Denoised, PackedTargets, PaddedImages, Predictions

EPS = 1e-3  # of every inverse sigmoid

# the official options that ask for another model than is here, and the values that do not
ONLY: dict[str, Any] = {
    "query_dim": 4,
    "num_patterns": 0,
    "pre_norm": False,
    "position_embedding": "sine",
    "two_stage_type": "standard",
    "two_stage_learn_wh": False,
    "two_stage_keep_all_tokens": False,
    "two_stage_add_query_num": 0,
    "two_stage_pat_embed": 0,
    "decoder_sa_type": "sa",
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "decoder_layer_noise": False,
    "dec_layer_number": None,
    "use_detached_boxes_dec_out": False,
}
OFFICIAL_BACKBONES = {
    "swin_T_224_1k": "swin_t",
    "swin_B_224_22k": "swin_b",
    "swin_B_384_22k": "swin_b_384",
    "swin_L_224_22k": "swin_l",
    "swin_L_384_22k": "swin_l_384",
}


@dataclass(frozen=True)
class DINOConfig(ModelConfig):
    """The sizes of a DINO; names and defaults are those of the official 4-scale options.

    The shapes of weights determine all but nheads (which the numbers of points rest on), dropout, activation,
    dilation, aux_loss, the positions' and the denoising options.

    Args:
        backbone: a ResNet, a Swin, or "conv_stem", which needs no pre-trained weights.
        activation: `transformer_activation`.
        num_classes: the largest category id + 1; there is no class "no object".
        num_queries: the encoder's best proposals that become queries.
        backbone_levels: how many of the last stages are levels, the length of `return_interm_indices`.
        num_feature_levels: that many and, for each further one, a convolution of stride 2.
        enc_n_points, dec_n_points: sampled points of each head and level.
        pe_temperatureH, pe_temperatureW: the longest wavelength of position encodings over 2 pi.
        pe_offset: added to the positions' counts; -0.5 in detrex.
        embed_init_tgt: contents of queries are learned; else they are the encoder's, as constants.
        dec_pred_bbox_embed_share, dec_pred_class_embed_share: all decoder layers have one head.
        two_stage_bbox_embed_share, two_stage_class_embed_share: the encoder's proposals have that one too.
        dn_number, dn_label_noise_ratio, dn_box_noise_scale, dn_limit_groups: `number`, `label_noise`,
            `box_noise` and `limit_groups` of `ContrastiveDenoising`. The official configuration file has a
            box noise of 0.4, all launch scripts and published results 1.0.
        dn_labelbook_size: one less than the rows of label embeddings; by default `num_classes`.
        aux_loss: predictions of all decoder layers rather than of the last alone.
    """

    model: ClassVar[str] = "DINO"

    backbone: str = "resnet50"
    dilation: bool = False
    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.0
    activation: str = "relu"
    num_queries: int = 900
    num_classes: int = 91
    backbone_levels: int = 3
    num_feature_levels: int = 4
    enc_n_points: int = 4
    dec_n_points: int = 4
    pe_temperatureH: float = 20.0
    pe_temperatureW: float = 20.0
    pe_offset: float = 0.0
    embed_init_tgt: bool = True
    dec_pred_bbox_embed_share: bool = True
    dec_pred_class_embed_share: bool = True
    two_stage_bbox_embed_share: bool = False
    two_stage_class_embed_share: bool = False
    dn_number: int = 100
    dn_label_noise_ratio: float = 0.5
    dn_box_noise_scale: float = 1.0
    dn_limit_groups: bool = False
    dn_labelbook_size: int | None = None
    aux_loss: bool = True

    def __post_init__(self) -> None:
        check_dimensions(
            self,
            {"backbone": BACKBONES, "activation": ACTIVATIONS},
            ("enc_layers", "dec_layers", "backbone_levels", "enc_n_points", "dec_n_points"),
            ("dn_number",),
        )
        # waves of two coordinates are interleaved, and norms need two channels a group
        check_multiple(self, "hidden_dim", GROUPS, " for the norms", least=2)
        if self.num_feature_levels < self.backbone_levels:
            raise ValueError(
                f"num_feature_levels: expected at least backbone_levels = {self.backbone_levels}; "
                f"got {self.num_feature_levels}"
            )
        if self.dn_labelbook_size is not None and self.dn_labelbook_size + 1 < self.num_classes:
            raise ValueError(
                f"dn_labelbook_size: expected at least num_classes - 1 = {self.num_classes - 1}; "
                f"got {self.dn_labelbook_size}"
            )
        for name in ("pe_temperatureH", "pe_temperatureW"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number > 0; got {getattr(self, name)!r}")
        if not 0 <= self.dn_label_noise_ratio <= 2:
            raise ValueError(f"dn_label_noise_ratio: expected 0..2; got {self.dn_label_noise_ratio!r}")
        if not 0 <= self.dn_box_noise_scale < math.inf:
            raise ValueError(
                f"dn_box_noise_scale: expected a finite number >= 0; got {self.dn_box_noise_scale!r}"
            )
        for head in ("bbox", "class"):
            if getattr(self, f"two_stage_{head}_embed_share") and not getattr(
                self, f"dec_pred_{head}_embed_share"
            ):
                raise ValueError(
                    f"two_stage_{head}_embed_share: expected dec_pred_{head}_embed_share as well; got False"
                )

    @classmethod
    def from_official_args(cls, args: Any) -> DINOConfig:
        """From the options of an official training run.

        Args:
            args: a namespace or mapping, as official training checkpoints carry it.

        Raises:
            ValueError: an option asks for a model that is not here.
        """
        values = dict(args) if isinstance(args, Mapping) else dict(vars(args))
        for name, only in ONLY.items():
            if values.get(name, only) != only:
                raise ValueError(f"args: expected {name} {only!r}; got {values[name]!r}")
        if "backbone" in values:
            values["backbone"] = OFFICIAL_BACKBONES.get(values["backbone"], values["backbone"])
        if "transformer_activation" in values:
            values["activation"] = values["transformer_activation"]
        if "return_interm_indices" in values:
            values["backbone_levels"] = len(values["return_interm_indices"])
        if values.get("dn_labelbook_size") == values.get("num_classes"):
            values["dn_labelbook_size"] = None
        if not values.get("use_dn", True):
            values["dn_number"] = 0
        return cls(**official_options(cls, values))

    @classmethod
    def sizes_in(cls, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
        # detrex counts positions as Deformable DETR does
        detrex = (
            {"pe_temperatureH": 1e4, "pe_temperatureW": 1e4, "pe_offset": -0.5} if is_detrex(state) else {}
        )
        state = official_names(state)
        prefix = "backbone.0." if "backbone.0.patch_embed.proj.weight" in state else "backbone.0.body."
        learned = "transformer.tgt_embed.weight" in state
        projections = [w for n, w in state.items() if n.startswith("input_proj.") and n.endswith(".0.weight")]
        heads: dict[str, Any] = {}
        for head, weight in (("bbox", "layers.0.weight"), ("class", "weight")):
            count = count_modules(state, f"{head}_embed")
            first, *others = (state[f"{head}_embed.{n}.{weight}"] for n in range(count))
            own = state[f"transformer.enc_out_{head}_embed.{weight}"]
            # heads that are one for all layers have the same values, and one in memory is the encoder's too
            heads[f"dec_pred_{head}_embed_share"] = all(torch.equal(first, other) for other in others)
            heads[f"two_stage_{head}_embed_share"] = first.data_ptr() == own.data_ptr() != 0
        classes, labels = len(state["class_embed.0.weight"]), len(state["label_enc.weight"]) - 1
        return {
            **transformer_sizes(state, overrides.get("nheads", cls.nheads)),
            **heads,
            **detrex,
            "backbone": overrides.get("backbone") or backbone_in(state, prefix),
            **({"num_queries": len(state["transformer.tgt_embed.weight"])} if learned else {}),
            "embed_init_tgt": learned,
            "num_classes": classes,
            "backbone_levels": sum(weight.shape[-1] == 1 for weight in projections),
            "dn_labelbook_size": labels if labels != classes else None,
        }


class Decoder(nn.Module):
    """A stack of decoder layers whose queries are boxes that each of them corrects."""

    def __init__(self, layers: Iterable[DecoderLayer], channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(channels)
        self.ref_point_head = MLP(2 * channels, channels, channels, layers=2)

    def forward(
        self,
        x: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        attend: Tensor | None,
        box_heads: Iterable[nn.Module],
    ) -> tuple[Tensor, Tensor]:
        """x [B, Q, C]; reference [B, Q, 4]; attend [1, Q, Q] -> states [L, B, Q, C], boxes [L, B, Q, 4]."""
        states, boxes = [], []
        start = reference
        for layer, box_head in zip(self.layers, box_heads, strict=True):
            scaled = levels.scale(reference)
            waves = box_waves(scaled[:, :, 0, [1, 0, 2, 3]], x.shape[-1] // 2)
            x = layer(x, self.ref_point_head(waves.to(x.dtype)), scaled, memory, levels, attend)
            state = self.norm(x)
            # the prediction's start keeps its gradient, what the next layer attends around does not
            boxes.append(relative_box(box_head(state), start, EPS))
            start = relative_box(box_head(x), reference, EPS)
            reference = start.detach()
            states.append(state)
        return torch.stack(states), torch.stack(boxes)


class Proposals(NamedTuple):
    """The best proposals of the encoder.

    Args:
        states: [B, Q, C], the encoder's output at their positions.
        logits: [B, Q, K].
        boxes: [B, Q, 4] (cx, cy, w, h).
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor


class DINOTransformer(DeformableEncoder):
    """Encoder over several feature levels, decoder over its best proposals; official names."""

    enc_out_class_embed: nn.Module
    enc_out_bbox_embed: nn.Module

    def __init__(self, config: DINOConfig) -> None:
        channels, heads = config.hidden_dim, config.nheads
        hidden, dropout, activation = config.dim_feedforward, config.dropout, config.activation
        levels, points = config.num_feature_levels, config.dec_n_points
        super().__init__(
            channels, heads, config.enc_layers, hidden, dropout, activation, levels, config.enc_n_points
        )
        layers = (
            DecoderLayer(channels, heads, hidden, dropout, activation, levels, points)
            for _ in range(config.dec_layers)
        )
        self.decoder = Decoder(layers, channels)
        if config.embed_init_tgt:
            self.tgt_embed = nn.Embedding(config.num_queries, channels)
        self.enc_output = nn.Linear(channels, channels)
        self.enc_output_norm = nn.LayerNorm(channels)
        self.reset_parameters()

    def propose(self, memory: Tensor, levels: Levels, count: int) -> Proposals:
        """The `count` positions of the largest logit, best first; memory is [B, S, C]."""
        memory, squares = proposal_squares(memory, levels)
        states = self.enc_output_norm(self.enc_output(memory))
        logits = self.enc_out_class_embed(states)
        best = best_positions(logits.amax(-1), count, levels)
        states, logits, squares = (
            x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])) for x in (states, logits, squares)
        )
        boxes = (at_least_float32(self.enc_out_bbox_embed(states)) + squares).sigmoid()
        return Proposals(states, logits, boxes)


class DINO(MultiScaleModel):
    """A backbone, a deformable transformer, and for each object query class scores and a box.

    Modules carry the official names, so official state dicts fit as they are, doubled names included.

    Args:
        backbone_weights: a torchvision ResNet or Microsoft Swin file to start the backbone from.
    """

    takes_targets = True

    def __init__(self, config: DINOConfig, *, backbone_weights: str | Path | None = None) -> None:
        stages, channels = config.backbone_levels, config.hidden_dim
        body = build_body(config.backbone, config.dilation, backbone_weights, stages=stages)
        position_encoding = PositionEncodingSine(
            channels, (config.pe_temperatureH, config.pe_temperatureW), offset=config.pe_offset
        )
        nested = config.backbone not in SWINS
        super().__init__(body, stages, config.num_feature_levels, channels, position_encoding, nested)
        self.config = config
        self.transformer = DINOTransformer(config)
        self.class_embed, self.bbox_embed = _heads(config)
        # official state dicts hold the heads under both names, and the encoder's
        decoder = self.transformer.decoder
        decoder.class_embed, decoder.bbox_embed = self.class_embed, self.bbox_embed
        for head in ("class", "bbox"):
            own = self.get_submodule(f"{head}_embed.0")
            shared = getattr(config, f"two_stage_{head}_embed_share")
            self.transformer.add_module(f"enc_out_{head}_embed", own if shared else deepcopy(own))
        labels = config.num_classes if config.dn_labelbook_size is None else config.dn_labelbook_size
        self.label_enc = nn.Embedding(labels + 1, channels)
        self.denoising = ContrastiveDenoising(
            config.dn_number, config.dn_label_noise_ratio, config.dn_box_noise_scale, config.dn_limit_groups
        )

    def forward(
        self,
        images: PaddedImages | Tensor | Sequence[Tensor],
        targets: PackedTargets | None = None,
        noise: Noise | None = None,
    ) -> Predictions:
        """Classes and boxes of every query.

        Args:
            images: a padded batch, a [B, 3, H, W] tensor without padding, or [3, H_b, W_b] tensors;
                normalised.
            targets: in training, what denoising queries are made from; without them there are none.
            noise: for these, instead of what `Noise.draw` gives.

        Returns:
            Logits [L, B, Q, K] and boxes [L, B, Q, 4], relative to each image without its padding, the
            encoder's chosen proposals as `encoder`, and what denoising queries gave as `denoised`.
        """
        features, positions, levels = self.feature_levels(images)
        memory = self.transformer.encode(features, positions, levels)
        best = self.transformer.propose(memory, levels, self.config.num_queries)
        if self.config.embed_init_tgt:
            content = self.transformer.tgt_embed.weight.expand(memory.shape[0], -1, -1)
        else:
            content = best.states.detach()
        reference, groups, attend = best.boxes.detach(), None, None
        if self.training:
            # ranks wait for its gradient, also where no image has a target
            content = content + self.label_enc.weight[0, 0] * 0
            groups = None if targets is None else self.denoising.groups(targets)
        if targets is not None and groups is not None:
            noise = noise or Noise.draw(targets, groups, self.config.num_classes)
            labels, boxes = self.denoising.queries(targets, groups, noise, self.label_enc.weight)
            content = torch.cat((labels, content), dim=1)
            reference = torch.cat((inverse_sigmoid(boxes, EPS).sigmoid(), reference), dim=1)
            attend = groups.attend(self.config.num_queries, content.device)
        states, boxes = self.transformer.decoder(content, reference, memory, levels, attend, self.bbox_embed)
        logits = torch.stack([head(x) for head, x in zip(self.class_embed, states, strict=True)])
        if not self.config.aux_loss:
            logits, boxes = logits[-1:], boxes[-1:]
        encoder = Predictions(best.logits[None], best.boxes[None])
        if groups is None:
            return Predictions(logits, boxes, encoder)
        first = groups.queries
        denoised = Denoised(logits[:, :, :first], boxes[:, :, :first], groups)
        return Predictions(logits[:, :, first:], boxes[:, :, first:], encoder, denoised=denoised)


def _heads(config: DINOConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The class and box head of each decoder layer, one for all or equal ones."""
    heads = focal_heads(config.hidden_dim, config.num_classes)
    shared = (config.dec_pred_class_embed_share, config.dec_pred_bbox_embed_share)
    class_heads, box_heads = (
        nn.ModuleList(head if share else deepcopy(head) for _ in range(config.dec_layers))
        for head, share in zip(heads, shared, strict=True)
    )
    return class_heads, box_heads
