"""Detectors from files of several origins."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch

from detr_fast import DETR, DETRConfig
from detr_fast.engine import MODELS, Detector, TrainConfig, load_detector, model_config
from detr_fast.engine.recipe import ImageSizes, ModelChoice, train_on_coco
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


def test_fine_tuning_starts_a_fresh_class_head(tmp_path: Path) -> None:
    model = detr(num_classes=8)
    about = Detector(model, {}, SIZE, SIZE).description()
    torch.save({"model": model.state_dict(), "detector": about}, tmp_path / "a.pt")
    same, remarks = ModelChoice(weights=tmp_path / "a.pt").starting_point().build(8)
    assert remarks == []
    assert torch.equal(same.class_embed.weight, model.class_embed.weight)
    other, remarks = ModelChoice(weights=tmp_path / "a.pt").starting_point().build(3)
    assert "has 8 classes and the data 3: the class head starts afresh" in remarks[0]
    assert other.class_embed.weight.shape[0] == 4
    assert torch.equal(other.query_embed.weight, model.query_embed.weight)
    with pytest.raises(ValueError, match="expected one of them"):
        ModelChoice(weights=tmp_path / "a.pt", backbone_weights=tmp_path / "b.pt").starting_point()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a run already"):
        train_on_coco(tmp_path / "data", tmp_path, TrainConfig(), ModelChoice().starting_point())


def test_scales_keep_the_official_proportions() -> None:
    assert ImageSizes.of(None, "detr") == ImageSizes(tuple(range(480, 801, 32)), 1333)
    half = ImageSizes.of(400, "detr")
    assert (half.scales[0], half.scales[-1], half.max_size, half.canvas) == (240, 400, 666, None)
    assert ImageSizes.of(None, "lsj") == ImageSizes(tuple(range(480, 801, 32)), 1333, 1024)
    half = ImageSizes.of(500, "lsj")
    assert (half.scales[-1], half.max_size, half.canvas) == (391, 651, 512)
    with pytest.raises(ValueError, match="augmentation: expected 'detr' or 'lsj'; got 'mosaic'"):
        ImageSizes.of(None, "mosaic")
