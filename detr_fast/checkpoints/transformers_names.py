"""The names of Hugging Face transformers' weights beside the official ones, in both directions.

Those of version 4, which version 5 reads as well; those of version 5 are read as version 4's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Rules: TypeAlias = Sequence[tuple[str, str]]
"""Beginnings of names, official and transformers', where `{n}` stands for the same number on both sides.

`{qkv}` stands for the three projections that the official code keeps in one tensor, by their letters,
`{query}` for the same by their words. The first rule that fits a name counts.
"""

PARTS = {"{qkv}": ("q", "k", "v"), "{query}": ("query", "key", "value")}
# what belongs to no parameter of ours: losses, counters, tables of indices, a norm that backbones do not use
LEFT_OUT = re.compile(
    r"^criterion\.|\.(num_batches_tracked|relative_position_index)$|pixel_level_module\.encoder\.(model\.)?layernorm\."
)
# version 5 -> version 4, and timm's wrapper
OLDER = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\.)_backbone\.", ""),
        (r"(?<=pixel_level_module\.encoder\.)swin\.", ""),
        (r"^((?:detr\.)?model\.backbone\.)model\.", r"\1conv_encoder.model."),
        (r"^((?:detr\.)?model\.)backbone\.(position_embedding\.)", r"\1\2"),
        (r"(?<=\.attention\.)o_proj\.", "output.dense."),
        (r"(?<=\.attention\.)q_proj\.", "self.query."),
        (r"(?<=\.attention\.)k_proj\.", "self.key."),
        (r"(?<=\.attention\.)v_proj\.", "self.value."),
        (r"(?<=\.attention\.)relative_position_bias\.", "self."),
        (r"(\.blocks\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
        (r"(\.blocks\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.fc(\d)\.", r".fc\1."),
        (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
        (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
        (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
        *(
            (rf"^mask_head\.fpn_stages\.{n}\.{fifth}\.", f"mask_head.{fourth}.")
            for n in range(3)
            for fifth, fourth in (
                ("fpn_adapter", f"adapter{n + 1}"),
                (r"refine\.conv", f"lay{n + 3}"),
                (r"refine\.norm", f"gn{n + 3}"),
            )
        ),
    )
)


def _resnet(ours: str, theirs: str, nested: bool) -> Rules:
    """A ResNet named as in detectron2 (`nested`) or torchvision; a convolution's norm comes before it."""
    rules = []

    def add(convolution: str, norm: str, at: str) -> None:
        rules.extend([(norm, f"{theirs}{at}normalization."), (convolution, f"{theirs}{at}convolution.")])

    stem = f"{ours}stem." if nested else ours
    add(f"{stem}conv1.", f"{stem}conv1.norm." if nested else f"{stem}bn1.", "embedder.embedder.")
    for stage in range(4):
        block = f"{ours}res{stage + 2}.{{n}}." if nested else f"{ours}layer{stage + 1}.{{n}}."
        at = f"encoder.stages.{stage}.layers.{{n}}."
        shortcut = f"{block}shortcut." if nested else f"{block}downsample.0."
        add(shortcut, f"{block}shortcut.norm." if nested else f"{block}downsample.1.", f"{at}shortcut.")
        for n in range(3):
            convolution = f"{block}conv{n + 1}."
            norm = f"{convolution}norm." if nested else f"{block}bn{n + 1}."
            add(convolution, norm, f"{at}layer.{n}.")
    return rules


def _timm_resnet(ours: str, theirs: str, nested: bool) -> Rules:
    """The same with timm's names, which are torchvision's."""
    if not nested:
        return [(ours, theirs)]
    official, timm = _resnet(ours, "", True), _resnet(theirs, "", False)
    return [(one, other) for (one, _), (other, _) in zip(official, timm, strict=True)]


def _swin(ours: str, theirs: str, norm: str) -> Rules:
    """A Swin; `norm` is in front of the number of a stage's norm."""
    block, at = f"{ours}layers.{{n}}.blocks.{{m}}.", f"{theirs}encoder.layers.{{n}}.blocks.{{m}}."
    within = (
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("attn.qkv.", "attention.self.{query}."),
        ("attn.proj.", "attention.output.dense."),
        ("attn.relative_position_bias_table", "attention.self.relative_position_bias_table"),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    )
    return [
        (f"{ours}patch_embed.proj.", f"{theirs}embeddings.patch_embeddings.projection."),
        (f"{ours}patch_embed.norm.", f"{theirs}embeddings.norm."),
        *((block + one, at + other) for one, other in within),
        (f"{ours}layers.{{n}}.downsample.", f"{theirs}encoder.layers.{{n}}.downsample."),
        *((f"{ours}norm{n}.", f"{norm.format(n, n + 1)}.") for n in range(4)),
    ]


def _layers(ours: str, theirs: str, *within: tuple[str, str]) -> Rules:
    """What is within each layer, feed-forward network included."""
    pairs = (*within, ("linear1.", "fc1."), ("linear2.", "fc2."))
    return [(f"{ours}layers.{{n}}.{one}", f"{theirs}layers.{{n}}.{other}") for one, other in pairs]


SELF_ATTENTION = (
    ("self_attn.in_proj_", "self_attn.{qkv}_proj."),
    ("self_attn.out_proj.", "self_attn.out_proj."),
)
ENCODER_NORMS = (("norm1.", "self_attn_layer_norm."), ("norm2.", "final_layer_norm."))


def _detr_decoder(ours: str, theirs: str) -> Rules:
    return [
        *_layers(
            ours,
            theirs,
            *SELF_ATTENTION,
            ("multihead_attn.in_proj_", "encoder_attn.{qkv}_proj."),
            ("multihead_attn.out_proj.", "encoder_attn.out_proj."),
            ("norm1.", "self_attn_layer_norm."),
            ("norm2.", "encoder_attn_layer_norm."),
            ("norm3.", "final_layer_norm."),
        ),
        (f"{ours}norm.", f"{theirs}layernorm."),
    ]


def _detr(prefix: str) -> Rules:
    model = f"{prefix}model."
    body, theirs = f"{prefix}backbone.0.body.", f"{model}backbone.conv_encoder.model."
    return [
        (f"{prefix}class_embed.", f"{prefix}class_labels_classifier."),
        (f"{prefix}bbox_embed.", f"{prefix}bbox_predictor."),
        (f"{prefix}query_embed.", f"{model}query_position_embeddings."),
        (f"{prefix}input_proj.", f"{model}input_projection."),
        (f"{prefix}backbone.1.row_embed.", f"{model}position_embedding.row_embeddings."),
        (f"{prefix}backbone.1.col_embed.", f"{model}position_embedding.column_embeddings."),
        *_layers(f"{prefix}transformer.encoder.", f"{model}encoder.", *SELF_ATTENTION, *ENCODER_NORMS),
        *_detr_decoder(f"{prefix}transformer.decoder.", f"{model}decoder."),
        *_resnet(body, theirs, nested=False),
        *_timm_resnet(body, theirs, nested=False),
    ]


_PIXELS, _QUERIES = "model.pixel_level_module.", "model.transformer_module."
_PIXEL_DECODER, _PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_RESNETS = (
    *_resnet("backbone.", f"{_PIXELS}encoder.", nested=True),
    *_timm_resnet("backbone.", f"{_PIXELS}encoder.", nested=True),
)


def _conv_norm(ours: str, theirs: str) -> Rules:
    return [(f"{ours}.norm.", f"{theirs}.1."), (f"{ours}.", f"{theirs}.0.")]


_BODY, _MODEL_BODY = "backbone.0.body.", "model.backbone.conv_encoder.model."
RULES: dict[str, Rules] = {
    "detr": _detr(""),
    "detr-segm": [*_detr("detr."), ("bbox_attention.", "bbox_attention."), ("mask_head.", "mask_head.")],
    "deformable-detr": [
        ("transformer.decoder.class_embed.", "model.decoder.class_embed."),
        ("transformer.decoder.bbox_embed.", "model.decoder.bbox_embed."),
        ("class_embed.", "class_embed."),
        ("bbox_embed.", "bbox_embed."),
        ("query_embed.", "model.query_position_embeddings."),
        ("input_proj.", "model.input_proj."),
        *_layers("transformer.encoder.", "model.encoder.", ("self_attn.", "self_attn."), *ENCODER_NORMS),
        *_layers(
            "transformer.decoder.",
            "model.decoder.",
            *SELF_ATTENTION,
            ("cross_attn.", "encoder_attn."),
            # the official code counts cross-attention first
            ("norm1.", "encoder_attn_layer_norm."),
            ("norm2.", "self_attn_layer_norm."),
            ("norm3.", "final_layer_norm."),
        ),
        *_resnet(_BODY, _MODEL_BODY, nested=False),
        *_timm_resnet(_BODY, _MODEL_BODY, nested=False),
        *(
            (f"transformer.{name}", f"model.{name}")
            for name in ("level_embed", "reference_points.", "enc_output", "pos_trans")
        ),
    ],
    "maskformer": [
        (f"{_PREDICTOR}class_embed.", "class_predictor."),
        (f"{_PREDICTOR}mask_embed.layers.{{n}}.", "mask_embedder.{n}.0."),
        (f"{_PREDICTOR}query_embed.", f"{_QUERIES}queries_embedder."),
        (f"{_PREDICTOR}input_proj.", f"{_QUERIES}input_projection."),
        *_detr_decoder(f"{_PREDICTOR}transformer.decoder.", f"{_QUERIES}decoder."),
        *_conv_norm(f"{_PIXEL_DECODER}layer_4", f"{_PIXELS}decoder.fpn.stem"),
        # from the coarsest stage on
        *(
            rule
            for n in (1, 2, 3)
            for one, other in (("adapter", "proj"), ("layer", "block"))
            for rule in _conv_norm(
                f"{_PIXEL_DECODER}{one}_{n}", f"{_PIXELS}decoder.fpn.layers.{3 - n}.{other}"
            )
        ),
        (f"{_PIXEL_DECODER}mask_features.", f"{_PIXELS}decoder.mask_projection."),
        *_swin("backbone.", f"{_PIXELS}encoder.model.", f"{_PIXELS}encoder.hidden_states_norms.{{0}}"),
        *_RESNETS,
    ],
    "mask2former": [
        (f"{_PREDICTOR}class_embed.", "class_predictor."),
        (f"{_PREDICTOR}mask_embed.layers.{{n}}.", f"{_QUERIES}decoder.mask_predictor.mask_embedder.{{n}}.0."),
        (f"{_PREDICTOR}query_embed.", f"{_QUERIES}queries_embedder."),
        (f"{_PREDICTOR}query_feat.", f"{_QUERIES}queries_features."),
        (f"{_PREDICTOR}level_embed.", f"{_QUERIES}level_embed."),
        (f"{_PREDICTOR}input_proj.", f"{_QUERIES}input_projections."),
        (f"{_PREDICTOR}decoder_norm.", f"{_QUERIES}decoder.layernorm."),
        *(
            (f"{_PREDICTOR}transformer_{one}", f"{_QUERIES}decoder.layers.{{n}}.{other}")
            for one, other in (
                ("self_attention_layers.{n}.norm.", "self_attn_layer_norm."),
                ("self_attention_layers.{n}.self_attn.in_proj_", "self_attn.{qkv}_proj."),
                ("self_attention_layers.{n}.self_attn.out_proj.", "self_attn.out_proj."),
                ("cross_attention_layers.{n}.norm.", "cross_attn_layer_norm."),
                ("cross_attention_layers.{n}.multihead_attn.", "cross_attn."),
                ("ffn_layers.{n}.norm.", "final_layer_norm."),
                ("ffn_layers.{n}.linear1.", "fc1."),
                ("ffn_layers.{n}.linear2.", "fc2."),
            )
        ),
        *_layers(
            f"{_PIXEL_DECODER}transformer.encoder.",
            f"{_PIXELS}decoder.encoder.",
            ("self_attn.", "self_attn."),
            *ENCODER_NORMS,
        ),
        (f"{_PIXEL_DECODER}transformer.level_embed", f"{_PIXELS}decoder.level_embed"),
        (f"{_PIXEL_DECODER}input_proj.", f"{_PIXELS}decoder.input_projections."),
        (f"{_PIXEL_DECODER}mask_features.", f"{_PIXELS}decoder.mask_projection."),
        *_conv_norm(f"{_PIXEL_DECODER}adapter_1", f"{_PIXELS}decoder.adapter_1"),
        *_conv_norm(f"{_PIXEL_DECODER}layer_1", f"{_PIXELS}decoder.layer_1"),
        *_swin("backbone.", f"{_PIXELS}encoder.", f"{_PIXELS}encoder.hidden_states_norms.stage{{1}}"),
        *_RESNETS,
    ],
}


def to_transformers(family: str, state: Mapping[str, Tensor], *, timm: bool = False) -> dict[str, Tensor]:
    """Official entries under transformers' names.

    Args:
        family: of `RULES`.
        state: with the official names.
        timm: a DETR's ResNet is one of timm's.

    Raises:
        ValueError: an entry has no place in transformers' model.
    """
    rules = RULES[family]
    if timm:
        rules = [
            rule for rule in rules if ".normalization." not in rule[1] and ".convolution." not in rule[1]
        ]
    patterns = [(_pattern(ours), theirs) for ours, theirs in rules]
    renamed = {}
    for name, tensor in state.items():
        theirs, rest, numbers = _first(patterns, name)
        if theirs is None:
            raise ValueError(f"model: transformers has no place for {name}")
        place = _filled(theirs, numbers) + rest
        parts = next((marker for marker in PARTS if marker in place), None)
        if parts is None:
            renamed[place] = tensor
            continue
        for letter, piece in zip(PARTS[parts], tensor.chunk(3), strict=True):
            renamed[place.replace(parts, letter)] = piece.contiguous()
    return renamed


def from_transformers(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' entries, of version 4 or 5, under the official names.

    What is of no use here is left out, what is unknown keeps its name.
    """
    patterns = [(_pattern(theirs), (ours, theirs)) for ours, theirs in RULES[family]]
    renamed: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        for newer, older in OLDER:
            name = newer.sub(older, name)
        if LEFT_OUT.search(name):
            continue
        rule, rest, numbers = _first(patterns, name)
        if rule is None:
            renamed[name] = tensor
            continue
        official = _filled(rule[0], numbers) + rest
        part = numbers.get("part")
        if part is None:
            renamed[official] = tensor
        else:
            order = next(parts.index(part) for marker, parts in PARTS.items() if marker in rule[1])
            thirds.setdefault(official, {})[order] = tensor
    for official, pieces in thirds.items():
        if len(pieces) < 3:
            raise ValueError(f"expected query, key and value of {official}; got {len(pieces)} of them")
        renamed[official] = torch.cat([pieces[n] for n in range(3)])
    return renamed


def _pattern(template: str) -> re.Pattern[str]:
    """Matches names that begin so, numbers and the third of a projection by name."""
    text = re.escape(template)
    for letter in "nm":
        text = text.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)")
    for marker, parts in PARTS.items():
        text = text.replace(re.escape(marker), f"(?P<part>{'|'.join(parts)})")
    return re.compile(text)


def _filled(template: str, numbers: Mapping[str, str]) -> str:
    for letter in "nm":
        template = template.replace(f"{{{letter}}}", numbers.get(letter, ""))
    return template


def _first(patterns: Iterable[tuple[re.Pattern[str], object]], name: str):  # type: ignore[no-untyped-def]
    """What belongs to the first pattern that a name begins with, the rest of the name, and the numbers."""
    for pattern, belongs in patterns:
        if found := pattern.match(name):
            return belongs, name[found.end() :], found.groupdict()
    return None, name, {}
