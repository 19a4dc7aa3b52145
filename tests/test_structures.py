from __future__ import annotations

import pytest
import torch

from detr_fast.structures import MaskPredictions, Matches, PackedTargets, PaddedImages, Predictions


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


def test_padded_images_of_a_chosen_size(rng: torch.Generator) -> None:
    images = [torch.rand(3, 4, 6, generator=rng), torch.rand(3, 5, 2, generator=rng)]
    assert PaddedImages.from_list(images, multiple=4).tensors.shape == (2, 3, 8, 8)
    padded = PaddedImages.from_list(images, size=(9, 7))
    assert padded.tensors.shape == (2, 3, 9, 7)
    assert torch.equal(padded.tensors[1, :, :5, :2], images[1])
    assert (~padded.mask).sum() == 24 + 10
    with pytest.raises(ValueError, match="multiple: expected an integer >= 1; got 0"):
        PaddedImages.from_list(images, multiple=0)
    with pytest.raises(
        ValueError, match=r"size: expected at least \(5, 6\), as the images need; got \(5, 5\)"
    ):
        PaddedImages.from_list(images, size=(5, 5))


def masked_targets(rng: torch.Generator) -> list[dict[str, torch.Tensor]]:
    shapes = ((2, 4, 6), (0, 5, 3), (1, 2, 7))
    return [
        {
            "labels": torch.zeros(shape[0], dtype=torch.int64),
            "boxes": torch.zeros(shape[0], 4),
            "masks": torch.rand(shape, generator=rng) > 0.5,
        }
        for shape in shapes
    ]


@pytest.mark.parametrize("size", [None, (8, 8)])
def test_packed_masks_are_padded(size: tuple[int, int] | None, rng: torch.Generator) -> None:
    targets = masked_targets(rng)
    targets[0]["masks"] = targets[0]["masks"].to(torch.uint8)
    packed = PackedTargets.from_list(targets, size)
    assert packed.masks is not None
    assert packed.masks.dtype == torch.bool
    assert packed.masks.shape == (3, *(size or (5, 7)))
    assert torch.equal(packed.masks[:2, :4, :6], targets[0]["masks"].bool())
    assert torch.equal(packed.masks[2, :2, :7], targets[2]["masks"][0])
    assert packed.masks.sum() == sum(target["masks"].sum() for target in targets)
    moved = packed.to("cpu")
    assert moved.masks is not None
    assert torch.equal(moved.masks, packed.masks)
    assert PackedTargets.from_list([{**t, "masks": t["masks"][:0]} for t in targets[1:2]]).masks.shape[0] == 0


def test_packed_targets_refuse_bad_masks(rng: torch.Generator) -> None:
    targets = masked_targets(rng)
    assert PackedTargets.from_list([{k: t[k] for k in ("labels", "boxes")} for t in targets]).masks is None
    with pytest.raises(
        ValueError, match=r"mask_size: expected at least \(5, 7\), as the masks; got \(5, 6\)"
    ):
        PackedTargets.from_list(targets, (5, 6))
    for masks, error, message in (
        (None, ValueError, r"expected masks in all or none; targets\[2\] has none"),
        (
            torch.zeros(2, 4, 4) > 0,
            ValueError,
            r"\['masks'\]: expected \[T, h, w\] with T = 1; got \[2, 4, 4\]",
        ),
        (torch.zeros(1, 4, 4), TypeError, r"\['masks'\]: expected bool .*; got torch.float32"),
    ):
        last = {**targets[2], "masks": masks}
        with pytest.raises(error, match=message):
            PackedTargets.from_list([*targets[:2], {k: v for k, v in last.items() if v is not None}])


def test_packed_targets_keep_image_order() -> None:
    targets = [
        {"labels": torch.tensor([3, 1]), "boxes": torch.rand(2, 4)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        {"labels": torch.tensor([7], dtype=torch.int32), "boxes": torch.rand(1, 4)},
    ]
    packed = PackedTargets.from_list(targets)
    assert packed.num_targets == (2, 0, 1)
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


def test_masks_of_a_detector_round_trip(rng: torch.Generator) -> None:
    boxes, masks = torch.rand(3, 2, 5, 4, generator=rng), torch.rand(1, 2, 5, 6, 7, generator=rng)
    predictions = Predictions(boxes, boxes, masks=masks)
    for found in (Predictions.from_dict(predictions.as_dict()), predictions.last()):
        assert found.masks.data_ptr() == masks.data_ptr()
        assert found.masks.shape == masks.shape
    assert Predictions.from_dict(Predictions(boxes, boxes).as_dict()).masks is None


def test_mask_predictions_round_trip_the_official_form(rng: torch.Generator) -> None:
    predictions = MaskPredictions(
        torch.rand(3, 2, 5, 4, generator=rng), torch.rand(3, 2, 5, 6, 7, generator=rng)
    )
    outputs = predictions.as_dict()
    assert set(outputs) == {"pred_logits", "pred_masks", "aux_outputs"}
    back = MaskPredictions.from_dict(outputs)
    assert torch.equal(back.logits, predictions.logits)
    assert torch.equal(back.masks, predictions.masks)
    last = MaskPredictions.from_dict(predictions.as_dict(aux=False))
    for found in (last, predictions.last()):
        assert torch.equal(found.masks, predictions.masks[-1:])
        assert torch.equal(found.logits, predictions.logits[-1:])
    with pytest.raises(ValueError, match="pred_masks"):
        MaskPredictions.from_dict({"pred_logits": predictions.logits[0]})


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("by_image", [False, True])
def test_maps_are_views(images: int, by_image: bool, rng: torch.Generator) -> None:
    """Of masks that lie in memory layer by layer or image by image."""
    masks = torch.rand(3, images, 5, 6, 7, generator=rng)
    if by_image:
        masks = masks.transpose(0, 1).contiguous().transpose(0, 1)
    maps, place = MaskPredictions(torch.rand(3, images, 5, 4, generator=rng), masks).maps()
    assert maps.data_ptr() == masks.data_ptr()
    assert torch.equal(maps[place], masks)


def test_matches_as_official_index_pairs() -> None:
    targets = PackedTargets.from_list(
        [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.rand(n, 4)} for n in (3, 0, 2)]
    )
    matches = Matches(torch.tensor([[0, 0, 0, 0, 0], [4, -1, 2, 1, 0]]))
    first, empty, last = matches.as_indices(targets)
    assert [x.tolist() for x in first] == [[2, 4], [2, 0]]
    assert [x.tolist() for x in empty] == [[], []]
    assert [x.tolist() for x in last] == [[0, 1], [1, 0]]
