"""The backbone of small models: its strides, and that padding and other images change nothing."""

from __future__ import annotations

import pytest
import torch

from detr_fast.families import FAMILIES, model_config
from detr_fast.models.conv_stem import STEMS, ConvStem
from detr_fast.structures import PaddedImages
from tests.models.small import images

SIZES = ((97, 64), (32, 128), (45, 51))


@pytest.mark.parametrize("name", STEMS)
def test_features_do_not_depend_on_the_batch(name: str, rng: torch.Generator) -> None:
    stem = ConvStem(*STEMS[name])
    with torch.no_grad():  # biases of norms would be seen beyond the border
        for parameter in stem.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    alone = images(rng, *SIZES)
    padded = PaddedImages.from_list(alone, multiple=stem.size_multiple)
    together = stem(padded.tensors, padded.mask)
    strides = [4, 8, 16, 32] if name == "conv_stem" else [2, 4, 8]
    for feature, stride, channels in zip(together, strides, stem.channels, strict=True):
        assert feature.shape == (3, channels, *(side // stride for side in padded.tensors.shape[2:]))
    for n, image in enumerate(alone):
        for feature, expected in zip(together, stem(image[None]), strict=True):
            height, width = expected.shape[2:]
            torch.testing.assert_close(feature[n, :, :height, :width], expected[0], rtol=1e-4, atol=1e-5)
            assert not feature[n, :, height:].any()
            assert not feature[n, :, :, width:].any()


@pytest.mark.parametrize("name", ["detr", "deformable-detr", "dino"])
def test_small_detectors_find_the_same_in_any_batch(name: str, rng: torch.Generator) -> None:
    """Of DINO the proposals: its decoder's positions are those of boxes in the padded batch."""
    model = FAMILIES[name].model(model_config(f"{name}-tiny", num_classes=3, num_queries=20)).eval()
    alone = images(rng, *SIZES)
    together = model(alone)
    for n, image in enumerate(alone):
        found, expected = together, model([image])
        if name == "dino":  # in what order near equals come is left open
            best = [x.encoder.logits.amax(-1) for x in (found, expected)]
            torch.testing.assert_close(best[0][:, n], best[1][:, 0], rtol=1e-4, atol=1e-4)
            continue
        torch.testing.assert_close(found.logits[:, n], expected.logits[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.boxes[:, n], expected.boxes[:, 0], rtol=1e-4, atol=1e-4)
