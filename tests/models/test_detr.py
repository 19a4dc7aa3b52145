"""DETR as a whole: configuration, inputs, precision, gradients, compilation, checkpoints."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr_fast.checkpoints import LoadReport, load_state_dict, read_checkpoint
from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig
from detr_fast.structures import PaddedImages
from tests.models.small import DETECTOR_SIZES, images
from tests.read_back import NoReadBack

SMALL = DETRConfig(**DETECTOR_SIZES)


@pytest.fixture(scope="module")
def model() -> DETR:
    torch.manual_seed(0)
    return DETR(SMALL).eval()


def test_shapes(model: DETR, rng: torch.Generator) -> None:
    found = model(images(rng, (64, 96), (70, 50), (40, 40)))
    assert found.logits.shape == (2, 3, 6, 6)
    assert found.boxes.shape == (2, 3, 6, 4)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()


def test_forms_of_input_agree(model: DETR, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (64, 96))
    expected = model(batch)
    for form in (PaddedImages.from_list(batch), torch.stack(batch)):
        found = model(form)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.boxes, expected.boxes)


def test_order_of_images_does_not_matter(model: DETR, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (70, 50), (40, 40))
    found, backwards = model(batch), model(batch[::-1])
    torch.testing.assert_close(backwards.logits.flip(1), found.logits, rtol=1e-4, atol=1e-4)


def test_last_layer_alone(model: DETR, rng: torch.Generator) -> None:
    alone = DETR(replace(SMALL, aux_loss=False)).eval()
    load_state_dict(alone, model.state_dict())
    batch = images(rng, (64, 64))
    found, expected = alone(batch), model(batch)
    torch.testing.assert_close(found.logits, expected.logits[-1:])
    torch.testing.assert_close(found.boxes, expected.boxes[-1:])


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, pre_norm=True, position_embedding="learned", activation="gelu"),
        replace(SMALL, backbone="resnet50", dilation=True, activation="glu", enc_layers=0),
        replace(SMALL, backbone="conv_stem"),
    ],
    ids=["r18", "pre-norm-learned", "r50-dc5-glu", "conv-stem"],
)
def test_training_step_reaches_every_parameter(config: DETRConfig, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = DETR(config)
    criterion = SetCriterion(5, HungarianMatcher(1, 5, 2), detection_weights(config.dec_layers))
    targets = [{"labels": torch.tensor([1, 4]), "boxes": torch.rand(2, 4, generator=rng)}]
    targets.append({"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)})
    criterion.total(criterion(model(images(rng, (64, 96), (50, 70))), targets)).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1"))
        assert (parameter.grad is None) == frozen, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_autocast_to_bfloat16(model: DETR, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (50, 70))
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)
    assert found.logits.dtype == torch.bfloat16
    assert found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whole_model_in_another_dtype(dtype: torch.dtype, rng: torch.Generator) -> None:
    model = DETR(SMALL).eval()
    batch = torch.stack(images(rng, (64, 96)))
    expected = model(batch)
    found = model.to(dtype)(batch.to(dtype))
    assert found.boxes.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-4 if dtype == torch.float64 else 0.2
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=tolerance, atol=tolerance)


def test_one_graph(model: DETR, rng: torch.Generator) -> None:
    """The forward pass compiles without a break."""
    batch = PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).logits, model(batch).logits)


def test_nothing_is_read_back(rng: torch.Generator) -> None:
    model = DETR(SMALL)
    batch = PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    with NoReadBack():
        model(batch).boxes.sum().backward()


def test_wrong_images(model: DETR) -> None:
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]; got \[3, 64, 64\]"):
        model(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]; got \[2, 1, 64, 64\]"):
        model([torch.zeros(1, 64, 64), torch.zeros(1, 50, 50)])
    with pytest.raises(TypeError, match=r"images: expected normalised .* got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images: expected at least one"):
        model([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "vgg16"),
        ("position_embedding", "rotary"),
        ("activation", "swish"),
        ("nheads", 0),
        ("dec_layers", 0),
        ("enc_layers", -1),
        ("num_queries", 2.5),
        ("num_classes", True),
        ("hidden_dim", 30),
        ("dropout", 1.0),
        ("dilation", True),
    ],
)
def test_wrong_configuration(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        replace(SMALL, **{field: value})


def test_configuration_from_official_args() -> None:
    args = argparse.Namespace(
        backbone="resnet101", dilation=True, nheads=4, masks=False, lr=1e-4, frozen_weights=None
    )
    expected = DETRConfig(backbone="resnet101", dilation=True, nheads=4, num_classes=250)
    assert DETRConfig.from_official_args(args, num_classes=250) == expected
    assert DETRConfig.from_official_args(vars(args), num_classes=250) == expected


def test_configuration_of_another_state_dict() -> None:
    with pytest.raises(
        ValueError, match=r"state: expected a DETR on a ResNet or Swin .*; got an unknown model"
    ):
        DETRConfig.from_state_dict({"weight": torch.zeros(1)})


def test_sizes_from_a_state_dict_beside_a_named_backbone() -> None:
    config = DETRConfig(
        backbone="conv_stem", hidden_dim=16, nheads=2, enc_layers=1, dec_layers=1, num_queries=3
    )
    state = DETR(config).state_dict()
    assert DETRConfig.from_state_dict(state, backbone="conv_stem", nheads=2) == config
    with pytest.raises(ValueError, match="expected a DETR on a ResNet"):
        DETRConfig.from_state_dict(state)


def test_checkpoint_round_trip(model: DETR, tmp_path: Path, rng: torch.Generator) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "c.pth")
    state = read_checkpoint(tmp_path / "c.pth")
    again = DETR(DETRConfig.from_state_dict(state, nheads=4)).eval()
    assert again.config == SMALL
    assert load_state_dict(again, state) == LoadReport()
    batch = images(rng, (64, 64))
    assert torch.equal(again(batch).logits, model(batch).logits)


def test_fine_tuning_on_other_classes(model: DETR) -> None:
    other = DETR(replace(SMALL, num_classes=2))
    report = load_state_dict(other, model.state_dict())
    assert report == LoadReport(resized=("class_embed.bias", "class_embed.weight"))
    assert torch.equal(other.query_embed.weight, model.query_embed.weight)


def test_backbone_weights(tmp_path: Path, model: DETR) -> None:
    torch.save(model.backbone[0].body.state_dict(), tmp_path / "resnet18.pth")
    started = DETR(SMALL, backbone_weights=tmp_path / "resnet18.pth")
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(started.backbone.state_dict()[name], value)
    with pytest.raises(
        ValueError, match="backbone_weights: expected a ResNet or Swin backbone; got conv_stem"
    ):
        DETR(replace(SMALL, backbone="conv_stem"), backbone_weights=tmp_path / "resnet18.pth")
