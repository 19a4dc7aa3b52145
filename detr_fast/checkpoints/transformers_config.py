"""What a `config.json` of Hugging Face transformers says of a model, in the words of the official options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# field of transformers (nested: the transformer decoder's), and ours
DETR = {
    "d_model": "hidden_dim",
    "decoder_attention_heads": "nheads",
    "decoder_layers": "dec_layers",
    "decoder_ffn_dim": "dim_feedforward",
    "dropout": "dropout",
    "activation_function": "activation",
    "num_queries": "num_queries",
}
FIELDS: dict[str, dict[str, str]] = {
    "detr": {
        **DETR,
        "encoder_layers": "enc_layers",
        "position_embedding_type": "position_embedding",
        "dilation": "dilation",
    },
    "deformable-detr": {
        **DETR,
        "encoder_layers": "enc_layers",
        "dilation": "dilation",
        "num_feature_levels": "num_feature_levels",
        "encoder_n_points": "enc_n_points",
        "decoder_n_points": "dec_n_points",
        "with_box_refine": "with_box_refine",
        "two_stage": "two_stage",
    },
    "maskformer": {
        "fpn_feature_size": "conv_dim",
        "mask_feature_size": "mask_dim",
        **{f"decoder_config.{theirs}": ours for theirs, ours in DETR.items() if ours != "activation"},
    },
    "mask2former": {
        "feature_size": "conv_dim",
        "mask_feature_size": "mask_dim",
        "hidden_dim": "hidden_dim",
        "num_attention_heads": "nheads",
        "encoder_layers": "enc_layers",
        "decoder_layers": "dec_layers",
        "encoder_feedforward_dim": "enc_dim_feedforward",
        "dim_feedforward": "dim_feedforward",
        "dropout": "dropout",
        "pre_norm": "pre_norm",
        "enforce_input_projection": "enforce_input_projection",
        "num_queries": "num_queries",
    },
}
FIELDS["detr-segm"] = FIELDS["detr"]
# what models of transformers have the same number of, and ours name once
SAME = (
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("encoder_ffn_dim", "decoder_ffn_dim"),
)
MODEL_TYPES = {
    "detr": "detr",
    "deformable_detr": "deformable-detr",
    "maskformer": "maskformer",
    "mask2former": "mask2former",
}
CLASSES = {
    "detr": "DetrForObjectDetection",
    "detr-segm": "DetrForSegmentation",
    "deformable-detr": "DeformableDetrForObjectDetection",
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
}
NAMELESS = ("", "N/A", "n/a")  # labels that stand for nothing


def family_of_config(config: Mapping[str, Any]) -> str:
    """The family that a configuration is of.

    Raises:
        ValueError: another model's, or one without the heads of a detector.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type: expected one of {', '.join(MODEL_TYPES)}; got {kind!r}")
    family = MODEL_TYPES[kind]
    named = (config.get("architectures") or [CLASSES[family]])[0]
    if kind == "detr" and named == CLASSES["detr-segm"]:
        return "detr-segm"
    if named != CLASSES[family]:
        raise ValueError(f"architectures: expected {CLASSES[family]}; got {named!r}")
    return family


def options_of(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The official options that a configuration states; ValueError for those of a model that ours is not."""
    for one, other in SAME:
        if config.get(one) != config.get(other):
            raise ValueError(
                f"{one}: expected the same as {other}, {config.get(other)}; got {config.get(one)}"
            )
    options = {}
    for place, ours in FIELDS[family].items():
        outer, dot, inner = place.partition(".")
        told = config.get(outer)
        if dot:
            told = told.get(inner) if isinstance(told, Mapping) else None
        if told is not None:
            options[ours] = told
    if options.get("two_stage") and "two_stage_num_proposals" in config:
        options["num_queries"] = config["two_stage_num_proposals"]
    if family == "mask2former" and "dec_layers" in options:
        options["dec_layers"] -= 1  # transformers counts predictions
    if family == "maskformer":
        options["enc_layers"] = 0  # transformers' pixel decoder has no encoder
    _check_backbone(config)
    return options


def config_of(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `options_of`: transformers' fields from ours."""
    config: dict[str, Any] = {}
    for place, ours in FIELDS[family].items():
        outer, dot, inner = place.partition(".")
        if dot:
            config.setdefault(outer, {"model_type": "detr"})[inner] = options[ours]
        else:
            config[outer] = options[ours]
    if options.get("two_stage"):
        config["two_stage_num_proposals"] = options["num_queries"]
    if family == "mask2former":
        config["decoder_layers"] += 1
    inner = config.get("decoder_config", config)
    for one, other in SAME:
        if other in inner:
            inner[one] = inner[other]
    return config


def labels_of(config: Mapping[str, Any]) -> dict[int, str] | None:
    """The names of labels that stand for something; None where the configuration does not tell them."""
    names = config.get("id2label")
    if not names:
        return None
    try:
        return {int(label): str(name) for label, name in names.items() if name not in NAMELESS}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"id2label: expected names by label; got {names!r:.100}") from error


def image_sizes(processor: Mapping[str, Any]) -> dict[str, int]:
    """`image_size` and `max_size` that a `preprocessor_config.json` states, of transformers since 4.0."""
    size = processor.get("size")
    if isinstance(size, Mapping):
        short, long = size.get("shortest_edge"), size.get("longest_edge")
    else:
        short, long = size, processor.get("max_size")
    found = {"image_size": short, "max_size": long}
    return {name: value for name, value in found.items() if type(value) is int and value > 0}


def _check_backbone(config: Mapping[str, Any]) -> None:
    """ValueError for options of a ResNet or Swin that official ones do not have and weights do not show."""
    backbone = config.get("backbone_config") or {}
    usual = {
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "use_absolute_embeddings": False,
    }
    for name, value in usual.items():
        if backbone.get(name, value) != value:
            raise ValueError(f"backbone_config: {name}: expected {value}; got {backbone[name]!r}")
    act = {"resnet": "relu", "swin": "gelu"}.get(backbone.get("model_type", ""))
    if act is not None and backbone.get("hidden_act", act) != act:
        raise ValueError(f"backbone_config: hidden_act: expected {act!r}; got {backbone['hidden_act']!r}")
