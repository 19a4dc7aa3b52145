from __future__ import annotations

import pytest
import torch

from detr_fast.structures import Matches, PackedTargets, PaddedImages, Predictions


def test_padded_images(rng: torch.Generator) -> None:
    images = [torch.rand(3, 4, 6, generator=rng), torch.rand(3, 5, 2, generator=rng)]
    padded = PaddedImages.from_list(images)
    assert padded.tensors.shape == (2, 3, 5, 6)
    for i, image in enumerate(images):
        _, h, w = image.shape
        assert torch.equal(padded.tensors[i, :, :h, :w], image)
        assert padded.tensors[i].sum() == pytest.approx(image.sum().item(), rel=1e-5)
        assert not padded.mask[i, :h, :w].any()
        assert padded.mask[i].sum() == 5 * 6 - h * w
    assert padded.to(torch.float64).mask.dtype == torch.bool


def test_padded_images_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PaddedImages.from_list([])
    with pytest.raises(ValueError, match=r"images\[1\]: expected \[3, H, W\]; got \[1, 2, 2\]"):
        PaddedImages.from_list([torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)])


def test_packed_targets_keep_image_order() -> None:
    targets = [
        {"labels": torch.tensor([3, 1]), "boxes": torch.rand(2, 4)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        {"labels": torch.tensor([7], dtype=torch.int32), "boxes": torch.rand(1, 4)},
    ]
    packed = PackedTargets.from_list(targets)
    assert packed.sizes == (2, 0, 1)
    assert packed.labels.tolist() == [3, 1, 7]
    assert packed.labels.dtype == torch.int64
    assert packed.batch_index.tolist() == [0, 0, 2]
    assert torch.equal(packed.boxes[2], targets[2]["boxes"][0])


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "expected the keys 'labels' and 'boxes'"),
        (
            {"labels": torch.zeros(2), "boxes": torch.zeros(2, 4)},
            TypeError,
            "expected integers; got torch.float32",
        ),
        (
            {"labels": torch.zeros(2, dtype=torch.int64), "boxes": torch.zeros(3, 4)},
            ValueError,
            r"boxes \[T, 4\]",
        ),
    ],
)
def test_packed_targets_refuse_bad_input(target: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedTargets.from_list([target])


def test_predictions_round_trip_the_official_form(rng: torch.Generator) -> None:
    predictions = Predictions(torch.rand(3, 2, 5, 4, generator=rng), torch.rand(3, 2, 5, 4, generator=rng))
    outputs = predictions.as_dict()
    assert len(outputs["aux_outputs"]) == 2
    assert torch.equal(outputs["pred_logits"], predictions.logits[-1])
    back = Predictions.from_dict(outputs)
    assert torch.equal(back.logits, predictions.logits)
    assert torch.equal(back.boxes, predictions.boxes)
    assert Predictions.from_dict(predictions.as_dict(aux=False)).logits.shape == (1, 2, 5, 4)
    with pytest.raises(ValueError, match="pred_boxes"):
        Predictions.from_dict({"pred_logits": predictions.logits[0]})


def test_matches_as_official_index_pairs() -> None:
    targets = PackedTargets.from_list(
        [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.rand(n, 4)} for n in (3, 0, 2)]
    )
    matches = Matches(torch.tensor([[0, 0, 0, 0, 0], [4, -1, 2, 1, 0]]))
    first, empty, last = matches.as_indices(targets)
    assert [x.tolist() for x in first] == [[2, 4], [2, 0]]
    assert [x.tolist() for x in empty] == [[], []]
    assert [x.tolist() for x in last] == [[0, 1], [1, 0]]
