"""Folders of transformers: transformers itself loads ours, and ours are read whoever wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_fast import models
from detr_fast.checkpoints.transformers_config import CLASSES
from detr_fast.checkpoints.transformers_names import from_transformers, to_transformers
from detr_fast.engine import FAMILIES, Detector, load_detector
from detr_fast.export import export
from detr_fast.models import resnet, swin
from detr_fast.structures import PaddedImages
from tests.cli.running import ok, refused
from tests.models.small import MASK_SIZES, SIZES, SMALL

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

DETECTOR: dict[str, Any] = {**SIZES, "backbone": "resnet18", "nheads": 8}
MASKS: dict[str, Any] = {**MASK_SIZES, "backbone": "resnet18"}
TWO_STAGES = {"with_box_refine": True, "two_stage": True}
DEFORMABLE = models.DeformableDETRConfig
CASES: dict[str, Callable[[], nn.Module]] = {
    "detr": lambda: models.DETR(models.DETRConfig(**DETECTOR)),
    "detr learned": lambda: models.DETR(models.DETRConfig(**DETECTOR, position_embedding="learned")),
    "detr-segm": lambda: models.DETRSegm(models.DETRSegmConfig(**DETECTOR)),
    "deformable-detr": lambda: models.DeformableDETR(DEFORMABLE(**DETECTOR)),
    "deformable-detr single": lambda: models.DeformableDETR(DEFORMABLE(**DETECTOR, num_feature_levels=1)),
    "deformable-detr refine": lambda: models.DeformableDETR(DEFORMABLE(**DETECTOR, with_box_refine=True)),
    "deformable-detr two stages": lambda: models.DeformableDETR(DEFORMABLE(**DETECTOR, **TWO_STAGES)),
    "maskformer": lambda: models.MaskFormer(models.MaskFormerConfig(**{**MASKS, "enc_layers": 0})),
    "maskformer swin": lambda: models.MaskFormer(
        models.MaskFormerConfig(**{**MASKS, "enc_layers": 0, "backbone": "swin_t"})
    ),
    "mask2former": lambda: models.Mask2Former(models.Mask2FormerConfig(**MASKS)),
    "mask2former swin": lambda: models.Mask2Former(
        models.Mask2FormerConfig(**{**MASKS, "backbone": "swin_t"})
    ),
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones of one block a stage."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", resnet.Architecture((1, 1, 1, 1), False))
    monkeypatch.setitem(swin.ARCHITECTURES, "swin_t", swin.SwinSizes(24, (2, 1, 1, 1), (1, 2, 4, 8)))


def detector_of(case: str, rng: torch.Generator) -> Detector:
    model = CASES[case]().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=rng)
            if name.endswith("running_var"):
                tensor.copy_(1 + noise.abs())
            elif tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.add_(0.1 * noise)
    family = case.split()[0]
    panoptic = family in ("detr-segm", "maskformer", "mask2former")
    categories = {label: (2 * label + 1, f"thing {label}") for label in (0, 1, 3, 4)}
    things = frozenset({0, 3}) if panoptic else None
    return Detector(model, categories, 64, 96, family, "panoptic" if panoptic else "detection", things=things)


def same_weights(one: nn.Module, other: nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def batch(masks: bool, rng: torch.Generator) -> PaddedImages:
    """Mask classifiers know of no padding."""
    pixels = torch.randn(2, 3, 96, 128, generator=rng)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    if not masks:
        mask[1, :, 100:] = True
        pixels[1, :, :, 100:] = 0
    return PaddedImages(pixels, mask)


def test_every_family_of_transformers_is_here() -> None:
    assert {case.split()[0] for case in CASES} == CLASSES.keys() == FAMILIES.keys() - {"dino"}


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_it_and_it_comes_back(case: str, tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of(case, rng)
    folder = export(detector, tmp_path / "folder", format="transformers")
    again = load_detector(folder)
    assert again.description()["categories"] == detector.description()["categories"]
    assert (again.task_name, again.things) == (detector.task_name, detector.things)
    assert (again.image_size, again.max_size) == (64, 96)
    same_weights(detector.model, again.model)

    theirs = getattr(transformers, CLASSES[detector.family])
    model, told = theirs.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    images = batch("mask" in case, rng)
    with torch.no_grad():
        expected: Any = detector.model(images)
        found = model.eval()(pixel_values=images.tensors, pixel_mask=(~images.mask).long())
    close(found["class_queries_logits" if "mask" in case else "logits"], expected.logits[-1])
    if hasattr(expected, "boxes"):
        close(found["pred_boxes"], expected.boxes[-1])
    if expected.masks is not None:
        close(found["masks_queries_logits" if "mask" in case else "pred_masks"], expected.masks[-1])

    # the names of version 5, as its modules have them
    fifth = from_transformers(detector.family, model.state_dict())
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(fifth[name], tensor), name
    # and what version 5 writes
    model.save_pretrained(tmp_path / "saved")
    same_weights(detector.model, load_detector(tmp_path / "saved").model)


def test_the_processor_is_transformers(tmp_path: Path, rng: torch.Generator) -> None:
    for case in ("detr", "deformable-detr", "mask2former"):
        folder = export(detector_of(case, rng), tmp_path / case, format="transformers")
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (64, 96)


@pytest.mark.parametrize("wrapper", ["", "_backbone."])
@pytest.mark.parametrize("case", ["detr", "mask2former"])
def test_backbones_of_timm(case: str, wrapper: str, tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of(case, rng)
    state = to_transformers(detector.family, detector.model.state_dict())
    body = {"detr": "model.backbone.conv_encoder.model.", "mask2former": "model.pixel_level_module.encoder."}[
        case
    ]
    timm = {}
    for name, tensor in state.items():
        if name.startswith(body):
            rest = name.removeprefix(body)
            rest = re.sub(r"^embedder\.embedder\.convolution", "conv1", rest)
            rest = re.sub(r"^embedder\.embedder\.normalization", "bn1", rest)
            rest = re.sub(r"^encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}", rest)
            rest = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", rest)
            rest = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", rest)
            rest = rest.replace("shortcut.convolution", "downsample.0")
            rest = rest.replace("shortcut.normalization", "downsample.1")
            name = body + wrapper + rest
        timm[name] = tensor
    found = from_transformers(detector.family, timm)
    assert found.keys() == detector.model.state_dict().keys()
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_a_dilated_backbone_is_timms(tmp_path: Path, rng: torch.Generator, monkeypatch: Any) -> None:
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet50", resnet.Architecture((1, 1, 1, 1), True))
    model = models.DETR(models.DETRConfig(**{**DETECTOR, "backbone": "resnet50", "dilation": True}))
    folder = export(Detector(model, {0: (1, "cat")}, 64, 96), tmp_path / "folder", format="transformers")
    config = json.loads((folder / "config.json").read_text())
    assert (config["use_timm_backbone"], config["backbone"], config["dilation"]) == (True, "resnet50", True)
    names = safetensors.load_file(folder / "model.safetensors")
    assert "model.backbone.conv_encoder.model.layer1.0.conv1.weight" in names
    assert load_detector(folder).config == model.config


def test_weights_in_several_files_and_of_torch(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    folder = export(detector, tmp_path / "folder", format="transformers")
    whole = folder / "model.safetensors"
    same_weights(detector.model, load_detector(whole).model)
    state = safetensors.load_file(whole)
    names = sorted(state)
    places = {}
    for n, part in enumerate((names[:50], names[50:])):
        safetensors.save_file({name: state[name] for name in part}, folder / f"model-{n}.safetensors")
        places |= dict.fromkeys(part, f"model-{n}.safetensors")
    whole.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    same_weights(detector.model, load_detector(folder).model)
    same_weights(detector.model, load_detector(index).model)

    index.write_text(json.dumps({"weight_map": {**places, "more": "model-0.safetensors"}}))
    with pytest.raises(
        ValueError, match=r"index\.json: 1 entries are in none of its files, the first 'more'"
    ):
        load_detector(folder)
    index.write_text(json.dumps({"weight_map": {**places, "more": "../model-0.safetensors"}}))
    with pytest.raises(ValueError, match="expected files of its folder"):
        load_detector(folder)
    index.write_text(json.dumps({"weight_map": {**places, "more": "model-2.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-2\.safetensors: missing, though"):
        load_detector(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json: expected an object"):
        load_detector(folder)
    index.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    same_weights(detector.model, load_detector(folder).model)


def test_labels_of_coco_keep_their_ids(tmp_path: Path) -> None:
    model = models.DETR(models.DETRConfig(**{**DETECTOR, "num_classes": 91}))
    folder = export(
        Detector(model, {1: (1, "person"), 18: (18, "dog")}), tmp_path / "a", format="transformers"
    )
    config = json.loads((folder / "config.json").read_text())
    del config["detr_fast"]
    config["id2label"] = {"0": "N/A", "1": "person", "18": "dog", "20": "unicorn"}
    (folder / "config.json").write_text(json.dumps(config))
    detector = load_detector(folder)
    assert detector.categories == {1: (1, "person"), 18: (18, "dog"), 20: (20, "unicorn")}
    assert (detector.family, detector.task_name) == ("detr", "detection")


def change(**fields: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return write


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"it has no config\.json"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"expected weights in one of model\.safetensors",
    ),
    "cut configuration": (lambda f: (f / "config.json").write_text('{"a": '), r"config\.json: damaged"),
    "no object": (
        lambda f: (f / "config.json").write_text("[1]"),
        r"config\.json: expected an object; got a list",
    ),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        r"model\.safetensors: damaged",
    ),
    "another model": (change(model_type="rt_detr"), r"model_type: expected one of detr.*got 'rt_detr'"),
    "no heads": (change(architectures=["DetrModel"]), "expected DetrForObjectDetection; got 'DetrModel'"),
    "another family": (
        change(model_type="deformable_detr", architectures=None),
        "transformer.level_embed|expected a",
    ),
    "heads differ": (change(encoder_attention_heads=4), "encoder_attention_heads: expected the same as"),
    "sizes differ": (change(d_model=128), "config.json: hidden_dim: expected the weights' 64; got 128"),
    "labels": (change(id2label=[1]), "id2label: expected names by label"),
    "stride": (
        change(backbone_config={"model_type": "resnet", "downsample_in_bottleneck": True}),
        "downsample_in_bottleneck: expected False; got True",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case: str, tmp_path: Path, rng: torch.Generator) -> None:
    folder = export(detector_of("detr", rng), tmp_path / "folder", format="transformers")
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_detector(folder)
    assert str(folder) in refused("export", folder, "--output", tmp_path / "a.onnx")


def test_a_third_of_a_projection_is_missed(rng: torch.Generator) -> None:
    state = to_transformers("detr", detector_of("detr", rng).model.state_dict())
    del state["model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(
        ValueError, match=r"query, key and value of transformer\.encoder\.layers\.0.*got 2 of them"
    ):
        from_transformers("detr", state)


def test_what_transformers_has_not(tmp_path: Path) -> None:
    pre_norm = models.DETR(models.DETRConfig(**DETECTOR, pre_norm=True))
    encoder = models.MaskFormer(models.MaskFormerConfig(**MASKS))
    points = models.Mask2Former(models.Mask2FormerConfig(**MASKS, enc_n_points=2))
    for family, model, message in (
        ("dino", SMALL["dino"](), "model: transformers has no dino; expected one of detr, "),
        ("detr", SMALL["detr"](), "backbone: .* takes one of resnet18.*; the model has conv_stem"),
        ("detr", pre_norm, "pre_norm: transformers' DetrForObjectDetection has False; the model has True"),
        ("maskformer", encoder, "enc_layers: transformers' MaskFormerForInstanceSegmentation has 0"),
        ("mask2former", points, "enc_n_points: transformers' Mask2Former.* has 4; the model has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            export(Detector(model, {}, family=family), tmp_path / "folder", format="transformers")
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_its_like_alone(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    folder = export(detector, tmp_path / "folder", format="transformers")
    (folder / "old").touch()
    export(detector, folder, format="transformers")
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(ValueError, match="path: expected a new folder or one of transformers"):
        export(detector, other, format="transformers")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "other"}


def test_a_weight_that_comes_back_otherwise(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of("detr", rng)
    monkeypatch.setattr(
        "detr_fast.export.transformers_folder.to_transformers",
        lambda *a, **k: {n: t + 1 for n, t in to_transformers(*a, **k).items()},
    )
    with pytest.raises(ValueError, match=r"folder: .* came back otherwise; the folder was not kept"):
        export(detector, tmp_path / "folder", format="transformers")
    assert not list(tmp_path.iterdir())


def test_the_commands_take_a_folder(tmp_path: Path, rng: torch.Generator) -> None:
    folder = export(detector_of("detr", rng), tmp_path / "folder", format="transformers")
    out = tmp_path / "again"
    assert f"written: {out}" in ok("export", folder, "--output", out, "--format", "transformers")
    same_weights(load_detector(folder).model, load_detector(out).model)
