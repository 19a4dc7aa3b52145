"""MaskFormer and Mask2Former as a whole: what the official cases leave open."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import LoadReport, load_state_dict
from detr_fast.models import DETR, DETRConfig, Mask2Former, Mask2FormerConfig, MaskFormer, MaskFormerConfig
from detr_fast.models.mask2former import inside, resize_features
from detr_fast.models.resnet import ResNet
from detr_fast.structures import PaddedImages
from tests.models.small import images

SIZES: dict[str, Any] = {
    "backbone": "conv_stem_8",
    "hidden_dim": 64,
    "conv_dim": 64,
    "mask_dim": 32,
    "nheads": 4,
    "enc_layers": 1,
    "dec_layers": 2,
    "enc_dim_feedforward": 48,
    "dim_feedforward": 48,
    "num_queries": 5,
    "num_classes": 3,
    "dropout": 0.0,
}
MASK2FORMER = Mask2FormerConfig(**SIZES, enc_n_points=2)
MASKFORMER = MaskFormerConfig(**SIZES)
OTHER: dict[str, Any] = {"hidden_dim": 32, "backbone": "resnet18", "dec_layers": 3}
CONFIGS = {
    "mask2former": MASK2FORMER,
    "mask2former-pre": replace(MASK2FORMER, pre_norm=True, enforce_input_projection=True),
    "mask2former-r18": replace(MASK2FORMER, **OTHER),
    "maskformer": MASKFORMER,
    "maskformer-pre": replace(MASKFORMER, pre_norm=True, enforce_input_projection=True),
    "maskformer-r18": replace(MASKFORMER, **OTHER),
    "maskformer-fpn": replace(MASKFORMER, enc_layers=0),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
BOTH = pytest.mark.parametrize("config", [MASK2FORMER, MASKFORMER], ids=["mask2former", "maskformer"])
Config = Mask2FormerConfig | MaskFormerConfig
Model = Mask2Former | MaskFormer


def make(config: Config) -> Model:
    torch.manual_seed(0)
    return Mask2Former(config) if isinstance(config, Mask2FormerConfig) else MaskFormer(config)


def predictions_made(model: Model) -> int:
    """One more than layers where the queries predict before the first."""
    return model.config.dec_layers + isinstance(model, Mask2Former)


@EACH
def test_shapes(config: Config, rng: torch.Generator) -> None:
    """Sizes that no stride divides; masks are as fine as the finest features."""
    model = make(config)
    stride = 4 if config.backbone == "resnet18" else 2
    for height, width in ((64, 96), (70, 50), (33, 1)):
        found = model(torch.randn(2, 3, height, width, generator=rng))
        assert found.logits.shape == (predictions_made(model), 2, 5, 4)
        assert found.masks.shape == (predictions_made(model), 2, 5, -(-height // stride), -(-width // stride))


@EACH
def test_last_layer_alone(config: Config, rng: torch.Generator) -> None:
    model, batch = make(config).eval(), images(rng, (40, 64), (64, 50))
    every, last = model(batch, all_layers=True), model(batch)
    assert len(every.logits) == predictions_made(model)
    assert len(last.logits) == len(last.masks) == 1
    torch.testing.assert_close(last.logits, every.logits[-1:])
    torch.testing.assert_close(last.masks, every.masks[-1:])


@BOTH
def test_lists_are_padded_as_officially(config: Config, rng: torch.Generator) -> None:
    """To a multiple of 32 for Mask2Former; padding counts like any pixel, whatever the mask says."""
    model, batch = make(config).eval(), images(rng, (40, 64), (50, 33))
    padded = PaddedImages.from_list(batch, multiple=model.size_multiple)
    assert padded.tensors.shape[2:] == ((64, 64) if config is MASK2FORMER else (50, 64))
    found = model(batch)
    for same in (padded, padded.tensors, PaddedImages(padded.tensors, torch.ones_like(padded.mask))):
        assert torch.equal(model(same).masks, found.masks)


@BOTH
def test_batch_of_one(config: Config, rng: torch.Generator) -> None:
    """Images do not see each other."""
    model, batch = make(config).eval(), images(rng, (64, 64), (64, 64))
    together = model(batch)
    for image, alone in enumerate(batch):
        torch.testing.assert_close(
            model([alone]).masks, together.masks[:, image : image + 1], rtol=1e-4, atol=1e-5
        )


@EACH
def test_gradients_reach_every_parameter(config: Config, rng: torch.Generator) -> None:
    model = make(config)
    with torch.no_grad():  # sampling offsets start equal for all positions
        for parameter in model.sem_seg_head.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    found = model(images(rng, (64, 96), (50, 70)))
    (found.logits.logsumexp(-1).sum() + found.masks.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # what comes first in DETR's decoder sees zeros
        seen = not name.endswith(
            ("decoder.layers.0.self_attn.in_proj_weight", "decoder.layers.0.norm1.weight")
        )
        assert parameter.grad.any() or not seen, name


def test_masks_may_be_resized_before_the_product(rng: torch.Generator) -> None:
    """Where queries attend, against full masks that are resized: the two orders differ by rounding."""
    features = torch.randn(2, 8, 20, 31, generator=rng, dtype=torch.float64)
    embeddings = torch.randn(2, 6, 8, generator=rng, dtype=torch.float64)
    masks = torch.einsum("bqm,bmhw->bqhw", embeddings, features)
    for size in ((10, 16), (5, 8), (3, 4), (40, 33), (1, 1)):
        resized = F.interpolate(masks, size=size, mode="bilinear").flatten(2)
        small = resize_features(features, size)
        torch.testing.assert_close(embeddings @ small, resized)
        attend = inside(embeddings, small)
        empty = (resized < 0).all(-1, keepdim=True)
        assert torch.equal(attend, (resized >= 0) | empty)
        assert attend.any(-1).all()


def test_queries_attend_inside_their_masks_alone(rng: torch.Generator) -> None:
    """Pixels outside do not reach a layer's output; a query without any attends everywhere."""
    layer = make(MASK2FORMER).sem_seg_head["predictor"].transformer_cross_attention_layers[0]
    x, position = torch.randn(1, 3, 64, generator=rng), torch.randn(3, 64, generator=rng)
    values = torch.randn(1, 10, 64, generator=rng)
    logits = torch.randn(1, 3, 10, generator=rng)
    logits[:, 2] = -1
    attend = inside(torch.eye(3)[None], logits)
    changed = torch.where(attend[:, 0, :, None], values, torch.randn(1, 10, 64, generator=rng))
    found, expected = (layer(x, position, v, v, attend) for v in (changed, values))
    torch.testing.assert_close(found[:, 0], expected[:, 0])
    assert not torch.allclose(found[:, 2], expected[:, 2])
    assert attend[:, 2].all()


def test_attention_masks_are_constants(rng: torch.Generator) -> None:
    """A layer's mask gives no gradient to the embeddings that made it."""
    embeddings = torch.randn(1, 2, 8, requires_grad=True, generator=rng)
    features = torch.randn(1, 8, 4, 4, requires_grad=True, generator=rng)
    small = resize_features(features, (2, 2))
    assert not small.requires_grad
    assert not inside(embeddings, small).requires_grad


@BOTH
def test_precisions(config: Config, rng: torch.Generator) -> None:
    model, batch = make(config).eval(), torch.randn(2, 3, 64, 64, generator=rng)
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.train()(batch)
        found.masks.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval().zero_grad()
    double = model.double()(batch.double())
    torch.testing.assert_close(double.logits.float(), expected.logits, rtol=1e-3, atol=1e-3)
    half = model.bfloat16()(batch.bfloat16())
    assert half.masks.dtype == torch.bfloat16
    assert half.masks.isfinite().all()


@BOTH
def test_compiled(config: Config, rng: torch.Generator) -> None:
    model, batch = make(replace(config, dec_layers=1)).eval(), torch.randn(1, 3, 64, 64, generator=rng)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found, expected = compiled(batch), model(batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.masks, expected.masks, rtol=1e-4, atol=1e-4)


@EACH
def test_state_dict_tells_the_config(config: Config) -> None:
    model = make(config)
    told = {name: getattr(config, name) for name in ("nheads", "dropout", "pre_norm")}
    if config.backbone == "conv_stem_8":
        told["backbone"] = "conv_stem_8"
    if not config.enc_layers:
        told["enc_dim_feedforward"] = config.enc_dim_feedforward
    if isinstance(config, Mask2FormerConfig):
        told["enc_n_points"] = config.enc_n_points
    guessed = type(config).from_state_dict(model.state_dict(), **told)
    assert guessed == config
    assert load_state_dict(make(guessed), model.state_dict()) == LoadReport()


def test_checkpoints_of_other_families() -> None:
    m2f, mf = make(replace(MASK2FORMER, **OTHER)), make(replace(MASKFORMER, **OTHER))
    sizes = {"backbone": "resnet18", "hidden_dim": 64, "enc_layers": 1, "dec_layers": 1, "num_queries": 4}
    detr = DETR(DETRConfig(**sizes))  # type: ignore[arg-type]
    cases = [
        (Mask2FormerConfig, mf, "expected a Mask2Former .* got a MaskFormer"),
        (MaskFormerConfig, m2f, "expected a MaskFormer .* got a Mask2Former"),
        (MaskFormerConfig, detr, "expected a MaskFormer .* got a DETR"),
        (DETRConfig, m2f, "expected a DETR .* got a Mask2Former"),
    ]
    for config, model, message in cases:
        with pytest.raises(ValueError, match=message):
            config.from_state_dict(model.state_dict())  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"this Mask2Former; got what looks like a MaskFormer\. missing: "):
        load_state_dict(m2f, mf.state_dict())


@BOTH
def test_class_heads_are_resized_for_other_classes(config: Config) -> None:
    given, model = make(config), make(replace(config, num_classes=7))
    report = load_state_dict(model, given.state_dict())
    head = "sem_seg_head.predictor.class_embed."
    assert report == LoadReport(resized=(f"{head}bias", f"{head}weight"))


@BOTH
def test_parameter_groups(config: Config) -> None:
    """Every parameter once; the backbone slower; neither norms nor embedding tables decay."""
    model = make(replace(config, **OTHER))
    groups = model.parameter_groups(lr=1e-4, lr_backbone=1e-5, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(settings) == len(names)
    assert settings["backbone.res2.0.conv1.weight"] == (1e-5, 0.05)
    queries = "sem_seg_head.predictor."
    assert settings[f"{queries}query_embed.weight"] == (1e-4, 0.0)
    assert settings[f"{queries}mask_embed.layers.0.weight"] == (1e-4, 0.05)
    pixels = "sem_seg_head.pixel_decoder."
    assert settings[f"{pixels}adapter_1.norm.weight"] == (1e-4, 0.0)
    assert settings[f"{pixels}adapter_1.weight"] == (1e-4, 0.05)
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg16"}, "backbone: expected one of .*conv_stem_8; got 'vgg16'"),
        ({"conv_dim": 48}, "conv_dim: expected a multiple of 32, at least 64, for the norms; got 48"),
        ({"conv_dim": 32}, "conv_dim: expected a multiple of 32, at least 64, for the norms; got 32"),
        ({"nheads": 3, "hidden_dim": 60}, "conv_dim: expected a multiple of nheads = 3; got 64"),
        ({"hidden_dim": 66, "nheads": 2}, "hidden_dim: expected a multiple of 4 for the positions; got 66"),
        ({"num_queries": 0}, "num_queries: expected an integer >= 1; got 0"),
        ({"mask_dim": 1.5}, "mask_dim: expected an integer >= 1; got 1.5"),
        ({"dec_layers": True}, "dec_layers: expected an integer >= 1; got True"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1; got 1.0"),
    ],
)
@BOTH
def test_configs_that_cannot_work(config: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_mask2former_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match="enc_layers: expected an integer >= 1; got 0"):
        replace(MASK2FORMER, enc_layers=0)
    with pytest.raises(ValueError, match="enc_n_points: expected an integer >= 1; got 0"):
        replace(MASK2FORMER, enc_n_points=0)


def test_images_that_are_none() -> None:
    model = make(MASK2FORMER)
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]; got \[1, 1, 8, 8\]"):
        model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(TypeError, match="images: expected normalised floating-point pixels"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("detectron2", [False, True])
def test_backbone_weights(detectron2: bool, tmp_path: Path) -> None:
    """Of torchvision, or converted to detectron2's names."""
    given = ResNet("resnet18", detectron2=detectron2)
    classifier = "stem.fc.weight" if detectron2 else "fc.weight"
    torch.save({**given.state_dict(), classifier: torch.zeros(2)}, tmp_path / "r18.pth")
    model = Mask2Former(replace(MASK2FORMER, **OTHER), backbone_weights=tmp_path / "r18.pth")
    for found, expected in zip(
        model.backbone.state_dict().values(), given.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected)


class Features(nn.Module):
    """What timm makes with `features_only`."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        widths = [8 * n for n in range(1, len(strides) + 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(3, n, 1) for n in widths)
        self.strides = strides
        self.feature_info = SimpleNamespace(channels=lambda: widths, reduction=lambda: list(strides))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = zip(self.convolutions, self.strides, strict=True)
        return [convolution(x[..., ::stride, ::stride]) for convolution, stride in maps]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("timm")
    strides = {"five": (2, 4, 8, 16, 32), "four": (4, 8, 16, 32), "one": (16,)}
    module.create_model = lambda name, features_only: Features(strides[name])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["five", "four"])
def test_timm_backbones(name: str, tmp_path: Path, rng: torch.Generator) -> None:
    config = replace(MASK2FORMER, backbone=f"timm:{name}")
    model = make(config)
    assert len(model.sem_seg_head["predictor"].level_embed.weight) == 3
    assert model(torch.randn(1, 3, 64, 96, generator=rng)).masks.shape[-2:] == (16, 24)
    body = model.backbone.body.state_dict()  # type: ignore[union-attr]
    torch.save({**body, "fc.weight": torch.zeros(2)}, tmp_path / "body.pth")
    Mask2Former(config, backbone_weights=tmp_path / "body.pth")
    body.popitem()
    torch.save(body, tmp_path / "body.pth")
    with pytest.raises(ValueError, match=r"body.pth: expected the entries of the backbone; .* is missing"):
        Mask2Former(config, backbone_weights=tmp_path / "body.pth")


@pytest.mark.usefixtures("timm")
def test_timm_backbone_of_one_stride() -> None:
    with pytest.raises(ValueError, match=r"backbone: expected features of several strides; one has \[16\]"):
        make(replace(MASK2FORMER, backbone="timm:one"))


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="backbone: timm:resnet26 needs the package timm"):
        make(replace(MASK2FORMER, backbone="timm:resnet26"))
