"""From predictions to detections in pixels."""

from __future__ import annotations

import pytest
import torch

from detr_fast.postprocess import postprocess_detection, postprocess_focal
from detr_fast.structures import Predictions


def test_best_class_and_pixels() -> None:
    logits = torch.full((2, 1, 3, 4), -10.0)
    logits[-1, 0, 0, 2] = 5  # sure of class 2
    logits[-1, 0, 1, 3] = 5  # nearly sure of no object
    logits[-1, 0, 2, 0] = 1
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(2, 1, 3, 4)
    predictions = Predictions(logits, boxes)
    (found,) = postprocess_detection(predictions, torch.tensor([[100, 200]]))
    assert found["labels"].tolist()[0] == 2
    assert found["labels"].tolist()[2] == 0
    assert found["queries"].tolist() == [0, 1, 2]
    assert found["scores"][0] > 0.99
    assert found["scores"][1] < 0.01
    torch.testing.assert_close(found["boxes"], torch.tensor([80.0, 30.0, 120.0, 70.0]).expand(3, 4))
    (from_dict,) = postprocess_detection(predictions.as_dict(), torch.tensor([[100, 200]]))
    assert all(torch.equal(from_dict[key], found[key]) for key in found)


def test_half_precision_gives_float32(rng: torch.Generator) -> None:
    logits, boxes = torch.randn(1, 2, 5, 4, generator=rng), torch.rand(1, 2, 5, 4, generator=rng)
    for found in postprocess_detection(Predictions(logits.bfloat16(), boxes.half()), torch.full((2, 2), 640)):
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_best_pairs_of_query_and_class() -> None:
    logits = torch.full((2, 1, 3, 4), -10.0)
    logits[-1, 0, 2, 1], logits[-1, 0, 0, 3], logits[-1, 0, 2, 0] = 3, 2, 1
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).repeat(2, 1, 3, 1)
    boxes[..., 2, 2:] = 1
    predictions, size = Predictions(logits, boxes), torch.tensor([[100, 200]])
    (found,) = postprocess_focal(predictions, size, top=3)
    assert found["labels"].tolist() == [1, 3, 0]
    assert found["queries"].tolist() == [2, 0, 2]
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    small, whole = [80.0, 30.0, 120.0, 70.0], [0.0, 0.0, 200.0, 100.0]
    torch.testing.assert_close(found["boxes"], torch.tensor([whole, small, whole]))
    (every,) = postprocess_focal(predictions.as_dict(), size)
    assert len(every["scores"]) == 3 * 4
    with pytest.raises(ValueError, match="top: expected at least 1; got 0"):
        postprocess_focal(predictions, size, top=0)


def test_wrong_sizes(rng: torch.Generator) -> None:
    predictions = Predictions(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    with pytest.raises(ValueError, match=r"target_sizes: expected \[B, 2\] with B = 2; got \[3, 2\]"):
        postprocess_detection(predictions, torch.ones(3, 2))
