"""DINO as a whole: what the official cases leave open."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy
from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.criterion import DINOCriterion, dino_weights
from detr_fast.engine import load_detector
from detr_fast.families.dino import dino_criterion
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DINO, DINOConfig
from detr_fast.models.denoising import ContrastiveDenoising, Noise
from detr_fast.structures import PackedTargets
from tests.models.small import LEVELS
from tests.read_back import NoReadBack

SMALL = DINOConfig(**LEVELS)


def make(rng: torch.Generator, config: DINOConfig = SMALL) -> DINO:
    """With random weights, so that every path counts: heads and offsets start at zero or equal."""
    model = DINO(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter[0].numel() ** 0.5)
    return model


def images(rng: torch.Generator, count: int = 2) -> list[Tensor]:
    return [torch.randn(3, 64, 48 + 16 * i, generator=rng) for i in range(count)]


def targets(rng: torch.Generator, *counts: int) -> PackedTargets:
    return PackedTargets.from_list(
        [
            {
                "labels": torch.randint(SMALL.num_classes, (count,), generator=rng),
                "boxes": torch.rand(count, 4, generator=rng) * 0.4 + 0.2,
            }
            for count in counts
        ]
    )


@pytest.mark.parametrize("counts", [(2, 5), (0, 3), (9, 1), (0, 0)], ids=str)
def test_training_with_any_number_of_targets(counts: tuple[int, int], rng: torch.Generator) -> None:
    """More than the six queries too; every trained parameter gets a gradient, and losses their names."""
    model, wanted = make(rng).train(), targets(rng, *counts)
    criterion = dino_criterion(model.config)
    predictions = model(images(rng), wanted)
    losses = criterion(predictions, wanted)
    assert criterion.weight_dict.keys() <= losses.keys()
    criterion.total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    denoised = [loss.item() for name, loss in losses.items() if "_dn" in name]
    assert all(loss > 0 for loss in denoised) if any(counts) else not any(denoised)
    assert (predictions.denoised is None) == (not any(counts))


def test_denoising_queries_are_seen_by_nobody_else(rng: torch.Generator) -> None:
    """Matching queries find the same with and without them, and a group does not see the others."""
    model, wanted = make(rng).train(), targets(rng, 2, 1)
    inputs = images(rng)
    groups = model.denoising.groups(wanted)
    assert groups is not None
    assert (groups.count, groups.size) == (50, 2)
    noise = Noise.draw(wanted, groups, SMALL.num_classes)
    found, without = model(inputs, wanted, noise), model(inputs)
    torch.testing.assert_close(found.logits, without.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, without.boxes, rtol=1e-4, atol=1e-4)
    other = Noise(*(x.clone() for x in noise))
    other.box_part[2:4] = 1 - other.box_part[2:4]
    changed = model(inputs, wanted, other)
    assert found.denoised is not None
    assert changed.denoised is not None
    moved = (found.denoised.boxes != changed.denoised.boxes).flatten(3).any(3).any(0)
    of_a_group = 2 * groups.size
    assert moved[:, of_a_group : 2 * of_a_group].any(1).all()
    assert not moved[:, :of_a_group].any()
    assert not moved[:, 2 * of_a_group :].any()


def test_evaluation_takes_no_targets(rng: torch.Generator) -> None:
    model, wanted, inputs = make(rng).eval(), targets(rng, 1, 2), images(rng)
    found = model(inputs, wanted)
    assert found.denoised is None
    assert torch.equal(found.logits, model(inputs).logits)


def test_no_denoising(rng: torch.Generator) -> None:
    model, wanted = make(rng, replace(SMALL, dn_number=0)).train(), targets(rng, 1, 2)
    assert model(images(rng), wanted).denoised is None


@pytest.mark.parametrize(
    ("number", "counts", "limited", "official"),
    [(20, (2, 5), 4, 40), (1, (3, 3), 1, 2), (100, (7, 1), 14, 14)],
)
def test_few_denoising_queries_can_be_shared_out(
    number: int, counts: tuple[int, int], limited: int, official: int, rng: torch.Generator
) -> None:
    for limit, expected in ((True, limited), (False, official)):
        groups = ContrastiveDenoising(number, limit_groups=limit).groups(targets(rng, *counts))
        assert groups is not None
        assert groups.count == expected


def test_noise_stays_within_its_bounds(rng: torch.Generator) -> None:
    """Corners of one half move by less than half the box's side, those of the other by up to all of it."""
    denoising, wanted = ContrastiveDenoising(), targets(rng, 3, 1)
    groups = denoising.groups(wanted)
    assert groups is not None
    labels, boxes = denoising.noised(wanted, Noise.draw(wanted, groups, SMALL.num_classes))
    corners, true = box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted.boxes)
    moved = (corners - true).abs() / (wanted.boxes[:, 2:] / 2).repeat(1, 2)
    # corners stop at the image's border
    free = (corners > 0.001) & (corners < 0.999)
    near, far = (moved[n::2][free[n::2]] for n in (0, 1))
    assert float(near.max()) <= 1.001
    assert 0.999 <= float(far.min()) <= float(far.max()) <= 2.001
    share = (labels != wanted.labels).float().mean()
    assert 0.05 < float(share) < 0.4  # a quarter is drawn anew, of which a fifth keeps its class


def test_denoising_reads_nothing_back(rng: torch.Generator) -> None:
    model, wanted = make(rng).train(), targets(rng, 2, 3)
    criterion = DINOCriterion(SMALL.num_classes, HungarianMatcher(2, 5, 2, "focal"), dino_weights(2))
    predictions = model(images(rng), wanted)
    with NoReadBack():
        groups = model.denoising.groups(wanted)
        assert groups is not None
        model.denoising.queries(
            wanted, groups, Noise.draw(wanted, groups, SMALL.num_classes), model.label_enc.weight
        )
        groups.attend(SMALL.num_queries, torch.device("cpu"))
    assert criterion(predictions, wanted).keys() >= criterion.weight_dict.keys()


def test_official_form_goes_and_comes_back(rng: torch.Generator) -> None:
    model, wanted = make(rng).train(), targets(rng, 2, 3)
    predictions = model(images(rng), wanted)
    outputs = predictions.as_dict()
    outputs["interm_outputs"] = outputs.pop("enc_outputs")
    criterion = dino_criterion(SMALL)
    for (name, found), expected in zip(
        criterion(outputs, wanted).items(), criterion(predictions, wanted).values(), strict=True
    ):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"backbone": "swin_t", "hidden_dim": 64},
        {"backbone": "resnet18", "backbone_levels": 4, "num_feature_levels": 5},
        {"dec_pred_bbox_embed_share": False, "dec_pred_class_embed_share": False, "embed_init_tgt": False},
        {"two_stage_bbox_embed_share": True, "two_stage_class_embed_share": True},
        {"dn_labelbook_size": 11, "enc_n_points": 2, "dec_n_points": 3},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_state_dicts_tell_the_configuration(fields: dict[str, Any], rng: torch.Generator) -> None:
    config = replace(SMALL, **{"backbone": "resnet18"} | fields)
    state = make(rng, config).state_dict()
    shapeless = {"nheads": 4} if config.embed_init_tgt else {"nheads": 4, "num_queries": 6}
    again = DINOConfig.from_state_dict(state, **shapeless)
    assert again == config
    other = DINO(again)
    assert load_state_dict(other, state) == LoadReport()
    assert {name for name in state if name.startswith("backbone.0.norm")} == (
        {f"backbone.0.norm{n}.{part}" for n in (1, 2, 3) for part in ("weight", "bias")}
        if config.backbone == "swin_t"
        else set()
    )


def test_fine_tuning_on_other_classes(rng: torch.Generator) -> None:
    report = load_state_dict(make(rng, replace(SMALL, num_classes=2)), make(rng).state_dict())
    assert {name.rpartition(".")[0] for name in report.resized} == {
        "label_enc", "transformer.enc_out_class_embed",
        *(f"{where}class_embed.{n}" for where in ("", "transformer.decoder.") for n in (0, 1)),
    }  # fmt: skip


# official names and those of detrex's `projects/dino`, written down from its modules
DETREX = (
    (r"^backbone\.0\.body\.(conv1|bn1)", r"backbone.stem.\1"),
    *((rf"^backbone\.0\.body\.layer{n}", f"backbone.res{n + 1}") for n in (1, 2, 3, 4)),
    (r"^(backbone.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^input_proj\.([012])\.", r"neck.convs.\1."),
    (r"^input_proj\.3\.", "neck.extra_convs.0."),
    (r"^(neck\..*)\.0\.(weight|bias)$", r"\1.conv.\2"),
    (r"^(neck\..*)\.1\.(weight|bias)$", r"\1.norm.\2"),
    (r"\.level_embed$", ".level_embeds"),
    (r"encoder(\.layers\.\d)\.self_attn", r"encoder\1.attentions.0"),
    (r"decoder(\.layers\.\d)\.self_attn", r"decoder\1.attentions.0.attn"),
    (r"decoder(\.layers\.\d)\.cross_attn", r"decoder\1.attentions.1"),
    (r"(layers\.\d)\.linear1", r"\1.ffns.0.layers.0.0"),
    (r"(layers\.\d)\.linear2", r"\1.ffns.0.layers.1"),
    (r"encoder(\.layers\.\d)\.norm1", r"encoder\1.norms.0"),
    (r"encoder(\.layers\.\d)\.norm2", r"encoder\1.norms.1"),
    (r"decoder(\.layers\.\d)\.norm2", r"decoder\1.norms.0"),
    (r"decoder(\.layers\.\d)\.norm1", r"decoder\1.norms.1"),
    (r"decoder(\.layers\.\d)\.norm3", r"decoder\1.norms.2"),
    (r"^transformer\.enc_out_(\w+_embed)", r"\1.2"),
)


def to_detrex(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a model with two decoder layers and three levels from the backbone."""
    renamed = {}
    for name, tensor in state.items():
        for official, detrex in DETREX:
            name = re.sub(official, detrex, name)
        renamed[name] = tensor
    heads = {name: tensor for name, tensor in renamed.items() if re.match(r"(class|bbox)_embed\.2\.", name)}
    return renamed | {f"transformer.decoder.{name}": tensor for name, tensor in heads.items()}


def test_detrex_files(tmp_path: Path, rng: torch.Generator) -> None:
    positions = {"pe_temperatureH": 1e4, "pe_temperatureW": 1e4, "pe_offset": -0.5}
    unshared = {"dec_pred_bbox_embed_share": False, "dec_pred_class_embed_share": False}
    classes = {"num_classes": 80, "dn_labelbook_size": 79}
    sizes = {"backbone": "resnet18", "nheads": 8, "num_feature_levels": 4}
    model = make(rng, replace(SMALL, **classes, **sizes, **unshared, **positions)).eval()
    torch.save({"model": to_detrex(model.state_dict())}, tmp_path / "detrex.pth")
    detector = load_detector(tmp_path / "detrex.pth")
    assert detector.family == "dino"
    assert detector.categories[0] == (1, "person")
    assert detector.model.config == model.config
    inputs = images(rng)
    assert torch.equal(detector.model(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_feature_levels": 2}, r"num_feature_levels: expected at least backbone_levels = 3; got 2"),
        ({"dn_labelbook_size": 3}, r"dn_labelbook_size: expected at least num_classes - 1 = 4; got 3"),
        ({"pe_temperatureW": 0.0}, r"pe_temperatureW: expected a finite number > 0; got 0.0"),
        ({"dn_label_noise_ratio": 3.0}, r"dn_label_noise_ratio: expected 0..2; got 3.0"),
        ({"dn_box_noise_scale": -1.0}, r"dn_box_noise_scale: expected a finite number >= 0; got -1.0"),
        ({"dn_number": -1}, r"dn_number: expected an integer >= 0; got -1"),
        (
            {"two_stage_bbox_embed_share": True, "dec_pred_bbox_embed_share": False},
            r"two_stage_bbox_embed_share: expected dec_pred_bbox_embed_share as well; got False",
        ),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **fields)


def test_official_options() -> None:
    official = {
        "backbone": "swin_L_384_22k", "transformer_activation": "gelu", "return_interm_indices": [0, 1, 2, 3],
        "num_feature_levels": 5, "dn_labelbook_size": 91, "num_classes": 91, "use_dn": False, "epochs": 12,
    }  # fmt: skip
    config = DINOConfig.from_official_args(official)
    assert config == DINOConfig(
        backbone="swin_l_384", activation="gelu", backbone_levels=4, num_feature_levels=5, dn_number=0
    )
    with pytest.raises(ValueError, match="args: expected two_stage_learn_wh False; got True"):
        DINOConfig.from_official_args({"two_stage_learn_wh": True})


def test_too_few_positions(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="images: expected at least num_queries = 6 positions"):
        make(rng)(torch.randn(1, 3, 2, 4, generator=rng))
