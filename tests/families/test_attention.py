"""Attention of the last decoder layer: what is read agrees with what the layer did, and can be drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.drawing.attention import attention_pictures, draw_attention
from detr_fast.families import decoder_attention
from detr_fast.models.decoder_attention import AttentionMaps, SamplingPoints
from detr_fast.models.deformable_attention import MSDeformAttn
from detr_fast.models.transformer import MultiheadAttention
from detr_fast.ops import ms_deform_attn
from detr_fast.structures import PaddedImages
from tests.models.small import SMALL

WITH_POINTS = ["deformable-detr", "deformable-detr-refine", "dino"]
WITH_MAPS = ["detr", "detr-segm", "maskformer", "mask2former"]


def batch(rng: torch.Generator) -> PaddedImages:
    """Two images, the second smaller."""
    images = [torch.randn(3, h, w, generator=rng) for h, w in ((64, 96), (40, 70))]
    return PaddedImages.from_list(images, multiple=32)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("name", WITH_MAPS)
def test_maps(name: str, rng: torch.Generator) -> None:
    model, images = SMALL[name]().train(), batch(rng)
    attention = decoder_attention(model, images)
    assert isinstance(attention, AttentionMaps)
    assert attention.maps.shape[:2] == (2, 6)
    # stride 8 of the padded 64 x 96
    assert attention.maps.shape[2:] == ((16, 24) if name == "mask2former" else (8, 12))
    torch.testing.assert_close(attention.maps.sum((2, 3)), torch.ones(2, 6))
    if name.startswith("detr"):
        assert not attention.maps[1, :, 5:].any(), "padding gets none"
        assert not attention.maps[1, :, :, 9:].any()
    assert model.training
    assert not hooks(model)


@pytest.mark.parametrize("name", WITH_POINTS)
def test_points(name: str, rng: torch.Generator) -> None:
    model, images = SMALL[name]().train(), batch(rng)
    attention = decoder_attention(model, images)
    assert isinstance(attention, SamplingPoints)
    assert attention.locations.shape == (2, 6, 4, 3 if name == "dino" else 4, 4, 2)
    torch.testing.assert_close(attention.weights.sum((3, 4)), torch.ones(2, 6, 4))
    assert attention.reference.shape == (2, 6, 2 if name == "deformable-detr" else 4)
    assert model.training
    assert not hooks(model)


@pytest.mark.parametrize("masks", ["none", "shared", "own"])
def test_weights_are_those_of_forward(masks: str, rng: torch.Generator) -> None:
    attention = MultiheadAttention(16, 4, dropout=0.5).eval()
    query, key, value = (torch.randn(2, n, 16, generator=rng) for n in (3, 7, 7))
    attend = None
    if masks != "none":
        attend = torch.rand(2, *([3] if masks == "own" else []), 7, generator=rng) < 0.7
        attend[..., 0] = True
    weights = attention.weights(query, key, attend)
    assert weights.shape == (2, 4, 3, 7)
    if attend is not None:
        left_out = ~attend.view(2, 1, -1, 7).expand_as(weights)
        assert not weights[left_out].any()
    v = nn.functional.linear(value, attention.in_proj_weight[32:], attention.in_proj_bias[32:])
    mixed = weights @ v.unflatten(-1, (4, -1)).transpose(1, 2)
    expected = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(query, key, value, attend), expected)


@pytest.mark.parametrize("dimensions", [2, 4])
def test_samples_are_those_of_forward(dimensions: int, rng: torch.Generator) -> None:
    shapes = [(4, 6), (2, 3)]
    attention = MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3)
    nn.init.normal_(attention.sampling_offsets.weight, generator=rng)
    nn.init.normal_(attention.attention_weights.weight, generator=rng)
    query, memory = (torch.randn(2, n, 16, generator=rng) for n in (5, 30))
    reference = torch.rand(2, 5, 2, dimensions, generator=rng)
    locations, weights = attention.samples(query, reference, shapes)
    value = attention.value_proj(memory).view(2, 30, 4, 4)
    expected = attention.output_proj(ms_deform_attn(value, shapes, locations, weights))
    torch.testing.assert_close(attention(query, reference, memory, shapes), expected)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("found", ["boxes", "masks", "nothing"])
def test_pictures(name: str, found: str, rng: torch.Generator) -> None:
    """Two panels for each of four queries, three in a row; a small image is enlarged to 256 pixels."""
    images = batch(rng)
    first = PaddedImages(images.tensors[1:], images.mask[1:])
    image = Image.new("RGB", (35, 20), "white")
    what: dict[str, Any] = {}
    if found == "boxes":
        what = {"boxes_xyxy": [[1, 2, 30, 12]] * 4, "labels": [1, 2, 3, 4], "captions": ["cat"] * 4}
    elif found == "masks":
        what = {"masks": torch.rand(4, 20, 35, generator=rng) < 0.5}
    before = image.tobytes()
    attention = decoder_attention(SMALL[name](), first)
    grid = attention_pictures(attention, first, image, [0, 4, 2, 2], **what)
    width, height = grid.size
    assert width == 6 * 256 + 3 * 6 + 2 * 12
    assert height == 2 * 146 + 12
    assert image.tobytes() == before
    assert attention_pictures(attention, first, image, []).size == (2 * 256 + 6, 146)


def test_large_images_shrink(rng: torch.Generator) -> None:
    first = PaddedImages.from_list([torch.randn(3, 32, 64, generator=rng)])
    grid = attention_pictures(
        decoder_attention(SMALL["detr"](), first), first, Image.new("RGB", (2000, 1000)), [0]
    )
    assert grid.size == (2 * 480 + 6, 240)


def test_heat_and_dots_lie_where_the_model_looked() -> None:
    """A batch twice as large as the image in it: only its upper left quarter is seen."""
    image, sizes = Image.new("RGB", (90, 60)), ((80, 120), (40, 60))
    maps = torch.zeros(1, 1, 8, 12)
    maps[0, 0, 1, 4] = 1
    heat = torch.from_numpy(as_array(draw_attention(image, AttentionMaps(maps), 0, *sizes)))
    row, column = divmod(int(heat.sum(-1).argmax()), 90)
    assert abs(row - 22) <= 2
    assert abs(column - 67) <= 2
    locations = torch.tensor([0.25, 0.125]).expand(1, 1, 1, 1, 1, 2)
    points = SamplingPoints(locations, torch.ones(1, 1, 1, 1, 1), torch.tensor([[[0.4, 0.4]]]))
    dots = as_array(draw_attention(image, points, 0, *sizes))
    red, green = dots[..., 0] - dots[..., 1], dots[..., 1] - dots[..., 0]
    assert divmod(int(red.argmax()), 90) == pytest.approx((15, 45), abs=2)
    assert divmod(int(green.argmax()), 90)[0] == pytest.approx(48, abs=6)


def as_array(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def test_other_models(rng: torch.Generator) -> None:
    with pytest.raises(TypeError, match=r"model: expected DETR or .*; got Linear"):
        decoder_attention(nn.Linear(2, 2), batch(rng))


def test_hooks_go_when_the_model_fails(rng: torch.Generator) -> None:
    model, images = SMALL["detr"]().train(), batch(rng)
    with pytest.raises(TypeError, match="images"):
        decoder_attention(model, replace(images, tensors=images.tensors.long()))
    assert not hooks(model)
    assert model.training
