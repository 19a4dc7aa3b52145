"""Training on real images gives the same losses with and without `accelerate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detr_fast
from detr_fast.data import build_detection_dataset
from detr_fast.structures import PaddedImages
from tests.integrations import tiny
from tests.paths import COCO_SAMPLE, COCO_SAMPLE_REASON

SIZE, CLASSES = 96, 91
POSITIONS = 12**2 + 6**2 + 3**2  # all are queries: a choice of the best has ties, which rounding decides
MODELS: dict[str, dict[str, Any]] = {
    "deformable_detr": {"auxiliary_loss": True},
    "rt_detr": {"num_denoising": 4, "num_queries": POSITIONS},
}


def batches(images: int = 4) -> list[dict[str, Any]]:
    """The sample's training images, small, as a model of transformers takes them."""
    assert COCO_SAMPLE is not None
    data = build_detection_dataset(COCO_SAMPLE, "train", train=False, scales=(SIZE,), max_size=SIZE)
    samples = [data[i] for i in range(len(data))]
    found = []
    for first in range(0, len(samples) - images + 1, images):
        some = samples[first : first + images]
        padded = PaddedImages.from_list([image for image, _ in some], size=(SIZE, SIZE))
        labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for _, target in some]
        found.append({"pixel_values": padded.tensors, "pixel_mask": (~padded.mask).long(), "labels": labels})
    return found


def curve(model: nn.Module, batches: list[dict[str, Any]], steps: int) -> Tensor:
    """The loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)  # dropout, denoising
        optimizer.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def curves(name: str, steps: int) -> tuple[Tensor, Tensor]:
    """Without and with `accelerate`."""
    model = tiny.build(name, num_labels=CLASSES, **MODELS[name]).train()
    before = curve(copy.deepcopy(model), batches(), steps)
    assert detr_fast.accelerate(model).replaced
    return before, curve(model, batches(), steps)


@pytest.mark.skipif(COCO_SAMPLE is None, reason=COCO_SAMPLE_REASON)
@pytest.mark.parametrize("name", MODELS)
def test_loss_curves_agree(name: str) -> None:
    expected, found = curves(name, 9)
    assert expected[-3:].mean() < expected[:3].mean()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)  # a match may have ties, too
