"""MaskFormer and Mask2Former against facebookresearch's code: from backbone features to gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.checkpoints import LoadReport, load_state_dict, read_checkpoint, write_checkpoint
from detr_fast.models import Mask2Former, Mask2FormerConfig, MaskFormer, MaskFormerConfig
from detr_fast.models.backbones import backbone_in
from detr_fast.structures import MaskPredictions, PaddedImages
from tests.golden import case as golden
from tests.golden.case import Case
from tests.golden.test_golden_mask_criterion import losses_of

# What the cases suggest: absolute for outputs, relative to the largest entry for gradients.
FORWARD = {"Mask2Former": 1e-4, "MaskFormer": 3e-5}
GRADIENTS, NORMS = 2e-3, 1e-3
GROUPS = ("", "scaled/")


def kind_of(notes: Mapping[str, Any]) -> str:
    return notes["source"].split()[0].removeprefix("facebookresearch/")


def mask_classifier(notes: Mapping[str, Any]) -> bool:
    return kind_of(notes) in FORWARD and "predictor" in notes["config"]


def mask2former(notes: Mapping[str, Any]) -> bool:
    return mask_classifier(notes) and kind_of(notes) == "Mask2Former"


def config_of(case: Case) -> Mask2FormerConfig | MaskFormerConfig:
    pixels, queries = case.config["pixel_decoder"], case.config["predictor"]
    sizes = {
        "backbone": backbone_in(case.state_dict(), "backbone."),
        "num_classes": case.config["num_classes"],
        "num_queries": queries["num_queries"],
        "hidden_dim": queries["hidden_dim"],
        "conv_dim": pixels["conv_dim"],
        "mask_dim": pixels["mask_dim"],
        "nheads": queries["heads"],
        "enc_layers": pixels["encoder_layers"],
        "dec_layers": queries["decoder_layers"],
        "enc_dim_feedforward": pixels["encoder_ffn_dim"],
        "dim_feedforward": queries["ffn_dim"],
        "pre_norm": queries["pre_norm"],
        "enforce_input_projection": queries["enforce_input_projection"],
    }
    assert pixels["encoder_heads"] == queries["heads"]
    if kind_of(case.notes) == "MaskFormer":
        return MaskFormerConfig(**sizes)
    return Mask2FormerConfig(**sizes, enc_n_points=pixels["encoder_points"])


@cache
def model_of(name: str, group: str) -> Mask2Former | MaskFormer:
    case = golden.load(name)
    config = config_of(case)
    model = Mask2Former(config) if isinstance(config, Mask2FormerConfig) else MaskFormer(config)
    extra = {"criterion.empty_weight": torch.ones(config.num_classes + 1)}
    report = load_state_dict(model, {**case.state_dict(group == "scaled/"), **extra})
    assert report == LoadReport(ignored=("criterion.empty_weight",))
    return model.eval()


def images_of(case: Case) -> PaddedImages:
    divisor = case.config["size_divisibility"] or 1
    assert divisor == (Mask2Former.size_multiple if mask2former(case.notes) else MaskFormer.size_multiple)
    return PaddedImages.from_list(case.images(), multiple=divisor)


def layers_of(case: Case) -> list[str]:
    """Prefixes of the outputs, in the order of the layers."""
    aux = len(case.notes["prediction_heads_in_loss_order"]) - 1
    return [*(f"aux/{k}/" for k in range(aux)), "out/"]


def same(case: Case, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=FORWARD[kind_of(case.notes)])


def same_norm(found: Tensor, expected: Tensor) -> None:
    total, norm = expected.tolist()
    assert float(found.double().norm()) == pytest.approx(norm, rel=NORMS)
    assert float(found.double().sum()) == pytest.approx(total, abs=NORMS * norm * found.numel() ** 0.5)


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier, GROUPS))
@torch.no_grad()
def test_outputs(name: str, group: str) -> None:
    case, model = golden.load(name), model_of(name, group)
    found = model(case.images(), all_layers=True)
    assert len(found.logits) == len(layers_of(case))
    for layer, prefix in enumerate(layers_of(case)):
        same(case, found.logits[layer], case[f"{group}{prefix}pred_logits"])
        same(case, found.masks[layer], case[f"{group}{prefix}pred_masks"])
    last = model(images_of(case))
    torch.testing.assert_close(last.logits, found.logits[-1:])
    torch.testing.assert_close(last.masks, found.masks[-1:])


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier, GROUPS))
@torch.no_grad()
def test_stages(name: str, group: str) -> None:
    """Features of the backbone and of the pixel decoder."""
    case, model = golden.load(name), model_of(name, group)
    features = model.backbone(images_of(case).tensors)
    for stage, feature in zip(("res2", "res3", "res4", "res5"), features, strict=True):
        same_norm(feature, case[f"{group}featurenorm/{stage}"])
    same(case, features[-1][:, :8], case[f"{group}feature/res5_first8"])
    memory, mask_features = model.sem_seg_head["pixel_decoder"](features)
    prefix = f"{group}pixel_decoder/"
    same_norm(mask_features, case[f"{prefix}mask_features_norm"])
    same(case, mask_features[:, :4], case[f"{prefix}mask_features_first4"])
    if isinstance(model, MaskFormer):
        same(case, memory, case[f"{prefix}encoder_memory"])
    else:
        same(case, memory[0], case[f"{prefix}multi_scale/0"])
        for level, x in enumerate(memory):
            same_norm(x, case[f"{prefix}multi_scale_norm/{level}"])


@pytest.mark.parametrize(("name", "group"), golden.find(mask2former, GROUPS))
@torch.no_grad()
def test_where_layers_attend(name: str, group: str) -> None:
    """Masks from features resized once, against official masks that are resized layer by layer."""
    case, model = golden.load(name), model_of(name, group)
    levels, mask_features = model.sem_seg_head["pixel_decoder"](model.backbone(images_of(case).tensors))
    predictor = model.sem_seg_head["predictor"]
    attended: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: attended.append(args[-1]))
        for layer in predictor.transformer_cross_attention_layers
    ]
    found: MaskPredictions = predictor(levels, mask_features, all_layers=True)
    for hook in hooks:
        hook.remove()
    assert len(attended) == len(case.names(f"{group}attn_mask/"))
    for k, attend in enumerate(attended):
        blocked = case[f"{group}attn_mask/{k}"].bool()
        assert torch.equal(attend, ~blocked | blocked.all(-1, keepdim=True))
        level = levels[k % len(levels)]
        resized = F.interpolate(found.masks[k], size=level.shape[-2:], mode="bilinear").flatten(2)
        assert torch.equal(resized < 0, blocked)


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier, GROUPS))
def test_gradients(name: str, group: str) -> None:
    case, model = golden.load(name), model_of(name, group)
    model.zero_grad()
    losses_of(case, group, model(images_of(case), all_layers=True))[1].backward()
    parameters = dict(model.named_parameters())
    norms = case.names(f"{group}gradnorm/")
    assert set(norms) == {n for n, parameter in parameters.items() if parameter.grad is not None}
    for parameter in norms:
        grad = parameters[parameter].grad
        assert grad is not None
        expected = case[f"{group}gradnorm/{parameter}"]
        if parameter in case.notes.get("parameters_with_zero_gradient_in_exact_arithmetic", ()):
            assert max(grad.norm(), grad.sum().abs(), *expected.abs()) < 1e-4
            continue
        same_norm(grad, expected)
        if f"{group}grad/{parameter}" in case:
            entries = case[f"{group}grad/{parameter}"]
            torch.testing.assert_close(
                grad, entries, rtol=0, atol=GRADIENTS * float(entries.abs().max()), msg=parameter
            )


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier))
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_state_dict_goes_back(name: str, group: str, suffix: str, tmp_path: Path) -> None:
    """What is saved carries the official names and the loaded values, in every official format."""
    official = golden.load(name).state_dict()
    write_checkpoint(model_of(name, group).state_dict(), tmp_path / f"m{suffix}")
    saved = read_checkpoint(tmp_path / f"m{suffix}")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[entry], official[entry]) for entry in official)


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier))
def test_config_from_state_dict(name: str, group: str) -> None:
    config = model_of(name, group).config
    told = {"nheads": config.nheads, "dropout": config.dropout, "pre_norm": config.pre_norm}
    assert type(config).from_state_dict(golden.load(name).state_dict(), **told) == config


@pytest.mark.parametrize(("name", "group"), golden.find(mask_classifier))
def test_older_official_names(name: str, group: str) -> None:
    """Once, the pixel decoder was the head itself, and query features were called static."""
    model = model_of(name, group)
    older = {
        key.replace("head.pixel_decoder.", "head.").replace(
            "predictor.query_feat.", "predictor.static_query."
        ): x
        for key, x in golden.load(name).state_dict().items()
    }
    assert type(model.config).from_state_dict(older).num_queries == model.config.num_queries
    assert load_state_dict(model, older) == LoadReport()
