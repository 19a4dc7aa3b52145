"""Detectors from files of several origins."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_fast import DETR, DETRConfig
from detr_fast.engine import MODELS, Detector, TrainConfig, load_detector, model_config
from detr_fast.engine.model_choice import ModelChoice
from detr_fast.engine.recipe import ImageSizes, train_on_coco
from tests.engine.tiny import SIZE, detr

SMALL = {"hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 32}


def test_names_stand_for_the_official_models() -> None:
    assert model_config("detr-r50") == DETRConfig()
    assert model_config("detr-r101-dc5", num_queries=7, num_classes=None) == DETRConfig(
        backbone="resnet101", dilation=True, num_queries=7
    )
    for name in MODELS:
        model_config(name)
    with pytest.raises(ValueError, match=r"model: expected one of detr, detr-r50, .*; got 'yolo'"):
        model_config("yolo")


def test_own_checkpoint_needs_nothing_else(tmp_path: Path) -> None:
    model = detr(dec_layers=3)
    detector = Detector(model, {1: (10, "disc"), 2: (20, "cross")}, 48, 96)
    torch.save({"model": model.state_dict(), "detector": detector.description()}, tmp_path / "a.pt")
    loaded = load_detector(tmp_path / "a.pt")
    assert loaded.model.config == model.config
    assert (loaded.categories, loaded.image_size, loaded.max_size) == (detector.categories, 48, 96)
    with pytest.raises(ValueError, match=r"a\.pt: model: the checkpoint holds detr with conv_stem"):
        load_detector(tmp_path / "a.pt", model="detr-r50")


@pytest.mark.parametrize("with_args", [True, False])
def test_official_checkpoint(tmp_path: Path, with_args: bool) -> None:
    config = DETRConfig(backbone="resnet50", dilation=with_args, num_queries=9, **SMALL)
    model = DETR(config)
    content = {"model": model.state_dict()}
    if with_args:
        args = {**dataclasses.asdict(config), "dataset_file": "coco", "lr": 1e-4}
        args.pop("num_classes")
        content["args"] = argparse.Namespace(**args)
    torch.save(content, tmp_path / "official.pth")
    loaded = load_detector(tmp_path / "official.pth", model=None if with_args else "detr-r50")
    if with_args:
        assert loaded.model.config == config
    assert loaded.categories[90] == (90, "toothbrush")
    assert 12 not in loaded.categories
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"transformer.level_embed": torch.zeros(4, 8)}}, tmp_path / "deformable.pth")
    with pytest.raises(ValueError, match=r"deformable\.pth: .*"):
        load_detector(tmp_path / "deformable.pth")

    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("unpickled",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ValueError, match=r"evil\.pth: "):
        load_detector(tmp_path / "evil.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_detector(tmp_path / "absent.pth")


def test_fine_tuning_takes_the_first_rows(tmp_path: Path) -> None:
    model = detr(num_classes=8)
    about = Detector(model, {}, SIZE, SIZE).description()
    torch.save({"model": model.state_dict(), "detector": about}, tmp_path / "a.pt")
    same, remarks = ModelChoice(weights=tmp_path / "a.pt").starting_point().build(8)
    assert remarks == []
    assert torch.equal(same.class_embed.weight, model.class_embed.weight)
    other, remarks = ModelChoice(weights=tmp_path / "a.pt", num_queries=7).starting_point().build(3)
    path = tmp_path / "a.pt"
    assert remarks == [
        f"{path}: has 8 classes and 3 are needed: the first 3 are taken",
        f"{path}: has 5 queries and 7 are needed: the first 5 are taken, the others start afresh",
    ]
    assert other.config.num_queries == 7
    assert torch.equal(other.class_embed.weight[:3], model.class_embed.weight[:3])
    assert torch.equal(other.class_embed.weight[3], model.class_embed.weight[8])
    assert torch.equal(other.query_embed.weight[:5], model.query_embed.weight)
    assert other.query_embed.weight[5:].std() > 0.5
    with pytest.raises(ValueError, match="expected one of them"):
        ModelChoice(weights=tmp_path / "a.pt", backbone_weights=tmp_path / "b.pt").starting_point()


def official_detr(**changes: Any) -> DETR:
    torch.manual_seed(1)
    return DETR(DETRConfig(**{"backbone": "resnet18", "num_queries": 9, **SMALL, **changes}))


@pytest.mark.parametrize("args", [{}, {"lr": 1e-4}, {"dropout": 0.3}, {"hidden_dim": 256, "dec_layers": 6}])
def test_shapes_go_before_args(args: dict[str, Any], tmp_path: Path) -> None:
    model = official_detr()
    content = {"model": model.state_dict(), "args": argparse.Namespace(**args, nheads=4, backbone="other")}
    torch.save(content, tmp_path / "c.pth")
    loaded = load_detector(tmp_path / "c.pth")
    assert loaded.config == dataclasses.replace(model.config, dropout=args.get("dropout", 0.1))
    content["args"] = vars(content["args"])
    torch.save(content, tmp_path / "c.pth")
    assert load_detector(tmp_path / "c.pth").config == loaded.config


def test_wrapped_files_say_what_was_taken(tmp_path: Path) -> None:
    model = official_detr(nheads=8)
    state = {f"module.{name}": x for name, x in model.state_dict().items()}
    state["module.backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(5)
    torch.save({"ema": {"module": state}, "args": None}, tmp_path / "c.pth")
    loaded = load_detector(tmp_path / "c.pth")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert loaded.remarks == (
        f"{tmp_path / 'c.pth'}: the weights of the entry 'ema.module' were taken",
        f"{tmp_path / 'c.pth'}: 'module.' was removed from the names",
    )


def test_other_kinds_of_models_are_named(tmp_path: Path) -> None:
    for names, kind in (
        (("bbox_head.fc_cls.weight", "backbone.layer4.0.conv1.weight"), "an mmdetection model"),
        (("model.0.conv.weight", "model.22.cv2.0.bias"), r"an ultralytics \(YOLO\) model"),
        (("model.backbone.conv_encoder.model.conv1.weight",), "a Hugging Face transformers model"),
    ):
        torch.save({"state_dict": {name: torch.ones(2) for name in names}}, tmp_path / "c.pth")
        with pytest.raises(ValueError, match=rf"c\.pth: model: .*got what looks like {kind}"):
            load_detector(tmp_path / "c.pth")


def test_descriptions_that_do_not_fit(tmp_path: Path) -> None:
    model = detr()
    about = Detector(model, {}, SIZE, SIZE).description()
    for wrong, message in (
        (
            {**about, "config": {**about["config"], "num_queries": 6}},
            "num_queries: expected the weights' 5; the description has 6",
        ),
        (
            {**about, "config": {**about["config"], "hidden": 6}},
            "version cannot read",
        ),
        (
            {**about, "config": {**about["config"], "enc_layers": 10**12}},
            "enc_layers: expected the weights' 1",
        ),
        (
            {**about, "config": {**about["config"], "hidden_dim": 2**40}},
            "hidden_dim: expected the weights' 32",
        ),
        ({}, "version cannot read"),
        ([], "version cannot read"),
    ):
        torch.save({"model": model.state_dict(), "detector": wrong}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=rf"a\.pt: .*{message}"):
            load_detector(tmp_path / "a.pt")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = detr()
    with torch.no_grad():
        model.query_embed.weight[0, 0] = float("nan")
    about = Detector(model, {}, SIZE, SIZE).description()
    torch.save({"model": model.state_dict(), "detector": about}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the first 'query_embed.weight'; .*--allow-non-finite"):
        ModelChoice(weights=tmp_path / "a.pt").starting_point()
    ModelChoice(weights=tmp_path / "a.pt", allow_non_finite=True).starting_point()
    assert load_detector(tmp_path / "a.pt", allow_non_finite=True).model.query_embed.weight.isnan().any()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a run already"):
        train_on_coco(tmp_path / "data", tmp_path, TrainConfig(), ModelChoice().starting_point())


def test_weights_are_not_overwritten(tmp_path: Path) -> None:
    model = detr()
    about = Detector(model, {}, SIZE, SIZE).description()
    torch.save({"model": model.state_dict(), "detector": about}, tmp_path / "best.pt")
    start = ModelChoice(weights=tmp_path / "best.pt").starting_point()
    with pytest.raises(ValueError, match=r"best\.pt would be written over the input"):
        train_on_coco(tmp_path / "data", tmp_path, TrainConfig(), start)


def test_scales_keep_the_official_proportions() -> None:
    assert ImageSizes.of(None, "detr") == ImageSizes(tuple(range(480, 801, 32)), 1333)
    half = ImageSizes.of(400, "detr")
    assert (half.scales[0], half.scales[-1], half.max_size, half.canvas) == (240, 400, 666, None)
    assert ImageSizes.of(None, "lsj") == ImageSizes(tuple(range(480, 801, 32)), 1333, 1024)
    half = ImageSizes.of(500, "lsj")
    assert (half.scales[-1], half.max_size, half.canvas) == (391, 651, 512)
    with pytest.raises(ValueError, match="augmentation: expected 'detr' or 'lsj'; got 'mosaic'"):
        ImageSizes.of(None, "mosaic")
