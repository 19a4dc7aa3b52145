"""Mean IoU by hand and by brute force."""

from __future__ import annotations

import pickle

import pytest
import torch

from detr_fast.metrics import MeanIoU


def test_by_hand() -> None:
    """Class 0: 2 of 3 united, class 1: 1 of 2, class 2: predicted in vain, class 3: absent."""
    truth = torch.tensor([[0, 0, 0, 1, 255, 255]])
    found = torch.tensor([[0, 0, 2, 1, 1, 3]])
    metric = MeanIoU(4)
    metric.update(found, truth)
    assert metric.per_class() == pytest.approx({0: 2 / 3, 1: 1.0, 2: 0.0})
    expected = {"mIoU": 5 / 9, "mACC": (2 / 3 + 1) / 2, "pACC": 3 / 4, "fwIoU": (3 * 2 / 3 + 1) / 4}
    assert metric.result() == pytest.approx(expected)


def test_perfect_and_empty() -> None:
    metric = MeanIoU(3)
    assert set(metric.result().values()) == {-1.0}
    assert metric.per_class() == {}
    metric.update(torch.zeros(2, 2).long(), torch.full((2, 2), 255))
    assert set(metric.result().values()) == {-1.0}, "ignored pixels do not count"
    labels = torch.tensor([[0, 2], [2, 0]])
    metric.update(labels, labels)
    assert set(metric.result().values()) == {1.0}


def test_brute_force_and_merging(rng: torch.Generator) -> None:
    truth = torch.randint(0, 6, (4, 9, 11), generator=rng)
    found = torch.where(torch.rand(truth.shape, generator=rng) < 0.6, truth, (truth + 1) % 6)
    truth[truth == 5] = 200
    parts = [MeanIoU(6, ignore=200) for _ in range(2)]
    for b in range(4):
        parts[b % 2].update(found[b], truth[b].to(torch.uint8))
    metric = pickle.loads(pickle.dumps(parts[0]))
    metric.merge(parts[1])
    counts = truth != 200
    shares = []
    for label in range(6):
        of_truth, of_found = (truth == label) & counts, (found == label) & counts
        if (of_truth | of_found).any():
            shares.append(float((of_truth & of_found).sum() / (of_truth | of_found).sum()))
    assert metric.result()["mIoU"] == pytest.approx(sum(shares) / len(shares))
    assert metric.result()["pACC"] == pytest.approx(float((truth == found)[counts].float().mean()))


def test_bad_input() -> None:
    metric, labels = MeanIoU(3), torch.zeros(2, 2).long()
    with pytest.raises(ValueError, match=r"predicted: expected truth's \[2, 2\]; got \[2, 3\]"):
        metric.update(torch.zeros(2, 3).long(), labels)
    with pytest.raises(ValueError, match=r"predicted: expected labels in 0\.\.2 or 255; got 3\.\.3"):
        metric.update(labels + 3, labels)
    with pytest.raises(ValueError, match=r"truth: expected labels in 0\.\.2 or 255; got 7\.\.7"):
        metric.update(labels, labels + 7)
    with pytest.raises(TypeError, match=r"predicted: expected integers; got torch\.float32"):
        metric.update(labels.float(), labels)
    with pytest.raises(ValueError, match="num_classes: expected at least 1; got 0"):
        MeanIoU(0)
    with pytest.raises(ValueError, match="ignore: expected none of the 300 classes; got 255"):
        MeanIoU(300)
    with pytest.raises(ValueError, match="other: expected num_classes = 3"):
        metric.merge(MeanIoU(4))
    assert not metric.confusion.any()
