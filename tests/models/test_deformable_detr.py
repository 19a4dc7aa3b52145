"""Deformable DETR as a whole: what the official cases leave open."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr_fast.checkpoints import LoadReport, load_state_dict, read_checkpoint
from detr_fast.criterion import FocalSetCriterion, focal_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DeformableDETR, DeformableDETRConfig
from detr_fast.models.deformable_detr import parameter_groups
from detr_fast.models.deformable_transformer import Levels
from detr_fast.structures import PaddedImages
from tests.models.small import DETECTOR_SIZES, images
from tests.read_back import NoReadBack

SMALL = DeformableDETRConfig(**{**DETECTOR_SIZES, "hidden_dim": 64, "enc_n_points": 2, "dec_n_points": 3})
REFINE = replace(SMALL, with_box_refine=True)
TWO_STAGE = replace(REFINE, two_stage=True)
KINDS = pytest.mark.parametrize("config", [SMALL, REFINE, TWO_STAGE], ids=["plain", "refine", "two-stage"])


def make(config: DeformableDETRConfig) -> DeformableDETR:
    torch.manual_seed(0)
    return DeformableDETR(config)


def stir(model: DeformableDETR, rng: torch.Generator) -> DeformableDETR:
    """Heads and offsets start at zero or equal: random weights let every path count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name and not name.startswith("backbone."):
                parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model


@KINDS
def test_shapes(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    found = make(config)(images(rng, (64, 96), (70, 50), (40, 40)))
    assert found.logits.shape == (2, 3, 6, 5)
    assert found.boxes.shape == (2, 3, 6, 4)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
    assert (found.encoder is not None) == config.two_stage
    if found.encoder is not None:
        positions = 9 * 12 + 5 * 6 + 3 * 3 + 2 * 2
        assert found.encoder.logits.shape == (1, 3, positions, 5)
        assert found.encoder.boxes.shape == (1, 3, positions, 4)


@KINDS
def test_start(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    """Classes start rare; without proposals to start from, boxes start at 0.12 of the image."""
    found = make(config).eval()(images(rng, (64, 96)))
    assert found.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)
    if not config.two_stage:
        torch.testing.assert_close(found.boxes[0, ..., 2:], torch.tensor(-2.0).sigmoid().expand(1, 6, 2))
    else:
        assert found.encoder is not None
        best = found.encoder.logits[0, ..., 0].topk(6).indices
        proposed = found.encoder.boxes[0].gather(1, best[..., None].expand(-1, -1, 4))
        torch.testing.assert_close(found.boxes[0], proposed, rtol=0, atol=2e-5)


@KINDS
def test_padding_does_not_matter(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    """Whatever the padding holds beyond the image, once it is marked, attention sees none of it."""
    model = stir(make(config).eval(), rng)
    features = [torch.randn(2, 64, s, s, generator=rng) for s in (8, 4, 2, 1)]
    masks = [torch.zeros(2, s, s, dtype=torch.bool) for s in (8, 4, 2, 1)]
    for mask in masks[:3]:
        mask[1, mask.shape[1] // 2 :] = True
    positions = [model.backbone[1](mask) for mask in masks]
    levels = Levels.from_masks(masks)
    padded = [x.masked_fill(m[:, None], 1e3) for x, m in zip(features, masks, strict=True)]
    valid = ~levels.padding[..., None]
    found, expected = (model.transformer.encode(x, positions, levels) for x in (padded, features))
    torch.testing.assert_close(found * valid, expected * valid)


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_other_numbers_of_levels(levels: int, rng: torch.Generator) -> None:
    config = replace(TWO_STAGE, num_feature_levels=levels, num_queries=4)
    model = stir(make(config), rng)
    batch = images(rng, (64, 96), (70, 50))
    model(batch).boxes.sum().backward()
    assert DeformableDETRConfig.from_state_dict(model.state_dict(), nheads=4, num_queries=4) == config
    assert len(model.feature_levels(batch)[2].shapes) == levels


@pytest.mark.parametrize(
    "config",
    [SMALL, REFINE, TWO_STAGE, replace(REFINE, backbone="conv_stem", activation="glu")],
    ids=["plain", "refine", "two-stage", "conv-stem-glu"],
)
def test_training_step_reaches_every_parameter(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    model = stir(make(config), rng)
    criterion = FocalSetCriterion(
        5, HungarianMatcher(2, 5, 2, "focal"), focal_weights(config.dec_layers, two_stage=config.two_stage)
    )
    targets = [{"labels": torch.tensor([1, 4]), "boxes": torch.rand(2, 4, generator=rng)}]
    targets.append({"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)})
    losses = criterion(model(images(rng, (64, 96), (50, 70))), targets)
    assert set(criterion.weight_dict) <= set(losses)
    criterion.total(losses).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1"))
        assert (parameter.grad is None) == frozen, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_last_layer_alone(rng: torch.Generator) -> None:
    model = stir(make(REFINE).eval(), rng)
    alone = make(replace(REFINE, aux_loss=False)).eval()
    load_state_dict(alone, model.state_dict())
    batch = images(rng, (64, 64))
    found, expected = alone(batch), model(batch)
    torch.testing.assert_close(found.logits, expected.logits[-1:])
    torch.testing.assert_close(found.boxes, expected.boxes[-1:])


@KINDS
def test_precisions(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    """Boxes and proposals keep float32; autocast and whole models in bfloat16 or float64 run."""
    model, batch = make(config).eval(), images(rng, (64, 96), (50, 70))
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)
    assert found.boxes.dtype == torch.float32
    if not config.two_stage:  # rounding may change which positions propose
        torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0.1, atol=0.2)
    padded = PaddedImages.from_list(batch)
    for dtype in (torch.float64, torch.bfloat16):
        found = model.to(dtype)(padded.to(dtype))
        assert found.boxes.dtype == torch.promote_types(dtype, torch.float32)
        if dtype == torch.float64 and not config.two_stage:
            torch.testing.assert_close(found.logits.float(), expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, TWO_STAGE], ids=["plain", "two-stage"])
def test_one_graph(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    """The forward pass compiles without a break."""
    model, batch = make(config).eval(), PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).logits, model(batch).logits)


def test_exports(rng: torch.Generator) -> None:
    model, batch = make(TWO_STAGE).eval(), torch.stack(images(rng, (64, 96)))

    class Detections(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.model(pixels)
            return found.logits, found.boxes

    logits, boxes = torch.export.export(Detections(), (batch,)).module()(batch)
    expected = model(batch)
    torch.testing.assert_close(logits, expected.logits)
    torch.testing.assert_close(boxes, expected.boxes)


@KINDS
def test_nothing_is_read_back(config: DeformableDETRConfig, rng: torch.Generator) -> None:
    model = make(config)
    batch = PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    with NoReadBack():
        model(batch).boxes.sum().backward()


def test_learning_rates() -> None:
    model = make(SMALL)
    rest, backbone, where = parameter_groups(model, lr=1.0, lr_backbone=0.5)
    assert (rest["lr"], backbone["lr"], where["lr"]) == (1.0, 0.5, 0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    slow = {names[parameter].rsplit(".", 2)[-2] for parameter in where["params"]}
    assert slow == {"sampling_offsets", "reference_points"}
    assert all(names[parameter].startswith("backbone.0.body.layer") for parameter in backbone["params"])
    grouped = [*rest["params"], *backbone["params"], *where["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {parameter for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "vgg16"),
        ("activation", "swish"),
        ("enc_layers", 0),
        ("num_feature_levels", 2),
        ("num_feature_levels", 0),
        ("dec_n_points", -1),
        ("hidden_dim", 32),
        ("hidden_dim", 72),
        ("dropout", 1.0),
        ("dilation", True),
        ("two_stage", True),
    ],
)
def test_wrong_configuration(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        replace(SMALL, **{field: value})


def test_too_small_for_proposals(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"images: expected at least num_queries = 6 positions .*; got 4"):
        make(TWO_STAGE)(images(rng, (8, 8)))


def test_configuration_from_official_args() -> None:
    args = argparse.Namespace(
        with_box_refine=True, enc_n_points=2, position_embedding="sine", masks=False, lr_backbone=2e-5
    )
    expected = DeformableDETRConfig(with_box_refine=True, enc_n_points=2)
    assert DeformableDETRConfig.from_official_args(args) == expected
    with pytest.raises(ValueError, match="args: expected position_embedding 'sine'; got 'learned'"):
        DeformableDETRConfig.from_official_args({"position_embedding": "learned"})


@KINDS
def test_checkpoint_round_trip(config: DeformableDETRConfig, tmp_path: Path, rng: torch.Generator) -> None:
    model = stir(make(config).eval(), rng)
    torch.save({"model": model.state_dict()}, tmp_path / "c.pth")
    state = read_checkpoint(tmp_path / "c.pth")
    again = DeformableDETR(DeformableDETRConfig.from_state_dict(state, nheads=4, num_queries=6)).eval()
    assert again.config == config
    assert load_state_dict(again, state) == LoadReport()
    batch = images(rng, (64, 64))
    assert torch.equal(again(batch).logits, model(batch).logits)
    with pytest.raises(
        ValueError, match=r"state: expected a Deformable DETR on a ResNet or Swin .*; got a DETR"
    ):
        DeformableDETRConfig.from_state_dict(
            {"transformer.decoder.layers.0.multihead_attn.a": torch.zeros(1)}
        )


def test_shared_tensors_under_one_name() -> None:
    """Files that store each tensor once hold either name of the heads."""
    model = make(TWO_STAGE)
    twins = tuple(f"transformer.decoder.{head}_embed." for head in ("bbox", "class"))
    for left_out in (twins, ("bbox_embed.", "class_embed.")):
        state = {name: x + 1 for name, x in model.state_dict().items() if not name.startswith(left_out)}
        again = make(TWO_STAGE)
        assert load_state_dict(again, state) == LoadReport()
        assert all(torch.equal(again.state_dict()[name], x) for name, x in state.items())
    state.pop("transformer.decoder.bbox_embed.0.layers.0.weight")
    with pytest.raises(ValueError, match=r"missing: bbox_embed.0.layers.0.weight; transformer.decoder.bbox"):
        load_state_dict(again, state)


def test_fine_tuning_on_other_classes() -> None:
    report = load_state_dict(make(replace(TWO_STAGE, num_classes=2)), make(TWO_STAGE).state_dict())
    assert len(report.resized) == 2 * 2 * 3
    assert all("class_embed." in name for name in report.resized)
    assert not report.missing
