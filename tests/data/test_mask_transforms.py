"""Masks stay on their objects: every transform moves them as it moves the painted pixels and the boxes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, tight_boxes
from detr_fast.data import EvalTransform, LargeScaleJitter, Target, TrainTransform
from detr_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, crop, hflip, resize


def discs(random_state: random.Random) -> tuple[Image.Image, Target]:
    """A disc in each colour channel; they may overlap. Labels name the channels."""
    width, height = random_state.randint(60, 200), random_state.randint(60, 200)
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(3):
        radius = random_state.randint(8, 25)
        center = random_state.randrange(width), random_state.randrange(height)
        masks.append((x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2)
    return Image.fromarray((np.stack(masks, -1) * 255).astype(np.uint8)), target(
        torch.from_numpy(np.stack(masks))
    )


def target(masks: Tensor) -> Target:
    count = len(masks)
    return {
        "boxes": tight_boxes(masks) if count else torch.zeros(0, 4),
        "labels": torch.arange(count),
        "area": masks.sum((1, 2), dtype=torch.float32),
        "iscrowd": torch.zeros(count, dtype=torch.int64),
        "image_id": torch.tensor([1]),
        "orig_size": torch.tensor(masks.shape[1:]),
        "masks": masks,
    }


def check(image: Tensor, new: Target, tolerance: float) -> None:
    height, width = image.shape[1:]
    assert new["masks"].shape == (len(new["labels"]), height, width)
    assert new["masks"].dtype == torch.bool
    assert new["masks"].flatten(1).any(1).all(), "no mask is empty"
    assert len({len(new[key]) for key in ("boxes", "labels", "area", "iscrowd", "masks")}) == 1
    brightness = (
        image * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    )
    boxes = box_cxcywh_to_xyxy(new["boxes"]) * torch.tensor([width, height, width, height])
    for label, mask, box in zip(new["labels"].tolist(), new["masks"], boxes, strict=True):
        painted = brightness[label] > 0.5
        # They may differ by a pixel along the outline, whose length the sides of the box around both bound.
        x0, y0, x1, y1 = tight_boxes((painted | mask)[None])[0].tolist()
        outline = x1 - x0 + y1 - y0 + 4
        assert int((painted ^ mask).sum()) <= tolerance * outline
        # A crop cuts the box; what it leaves of the mask may be narrower still.
        around = tight_boxes(mask[None])[0]
        assert (around[:2] >= box[:2] - tolerance - 1).all()
        assert (around[2:] <= box[2:] + tolerance + 1).all()
    for label in {0, 1, 2} - set(new["labels"].tolist()):
        # Where the mask ends at the crop's border, a row of pixels may show that it does not cover.
        edge = math.ceil(tolerance)
        inside = brightness[label, edge:-edge, edge:-edge]
        assert not (inside > 0.5).any(), "an object was removed but it is visible"


def state(rng: torch.Generator) -> random.Random:
    return random.Random(int(torch.randint(2**31, (), generator=rng)))


@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [
        (EvalTransform(100, 150), 1.5),
        # An object may be shrunk, cropped and enlarged by 2.8: a pixel becomes that wide.
        (TrainTransform((90, 110, 140), 230, crop_scales=(80, 120), crop_size=(50, 100)), 4),
        (LargeScaleJitter(120, (0.5, 2.0)), 2),
    ],
    ids=["eval", "detr", "lsj"],
)
def test_masks_stay_on_objects(rng: torch.Generator, transform: object, tolerance: float) -> None:
    random_state = state(rng)
    for _ in range(40):
        image, given = discs(random_state)
        tensor, new = transform(image, given, random_state)  # type: ignore[operator]
        check(tensor, new, tolerance)


def test_flip_and_crop_by_hand() -> None:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 0:2] = True
    masks[1, 4:6, 5:8] = True
    masks[2, 0, 0] = masks[2, 5, 7] = True
    given = target(masks)
    image = Image.new("RGB", (8, 6))
    flipped = hflip(image, given)[1]
    assert torch.equal(flipped["masks"], masks.flip(2))
    assert torch.equal(flipped["boxes"], tight_boxes(masks.flip(2)))
    # The third box spans the crop, but no pixel of its mask lies inside.
    cropped = crop(image, given, (1, 1, 6, 4))[1]
    assert cropped["labels"].tolist() == [0, 1]
    assert torch.equal(cropped["masks"], masks[:2, 1:5, 1:7])
    assert cropped["boxes"].tolist() == [[0, 0, 1, 2], [4, 3, 6, 4]]
    assert torch.equal(given["masks"], masks), "the given target is left alone"
    without = {key: value for key, value in given.items() if key != "masks"}
    assert crop(image, without, (1, 1, 6, 4))[1]["labels"].tolist() == [0, 1, 2]


def test_resize_takes_the_official_pixels(rng: torch.Generator) -> None:
    """The official code: nearest interpolation of floats, then > 0.5."""
    for width, height, size in ((60, 40, 25), (30, 47, 101), (64, 64, 32), (5, 90, 7)):
        masks = torch.rand(4, height, width, generator=rng) < 0.5
        resized, new = resize(Image.new("RGB", (width, height)), target(masks), size)
        shape = (resized.height, resized.width)
        expected = torch.nn.functional.interpolate(masks[:, None].float(), shape, mode="nearest")[:, 0] > 0.5
        assert torch.equal(new["masks"], expected)
        rows = [min(math.floor(i * height / shape[0] + 1e-4), height - 1) for i in range(shape[0])]
        columns = [min(math.floor(i * width / shape[1] + 1e-4), width - 1) for i in range(shape[1])]
        assert torch.equal(new["masks"], masks[:, rows][:, :, columns])


def test_no_objects_survive_every_transform(rng: torch.Generator) -> None:
    random_state = state(rng)
    for transform in (EvalTransform(64), TrainTransform.for_scales((64,), 100), LargeScaleJitter(64)):
        for _ in range(6):
            given = target(torch.zeros(0, 50, 70, dtype=torch.bool))
            tensor, new = transform(Image.new("RGB", (70, 50)), given, random_state)
            assert new["masks"].shape == (0, *tensor.shape[1:])
            assert new["boxes"].shape == (0, 4)


def test_large_scale_jitter_sizes(rng: torch.Generator) -> None:
    """The longer side is a multiple 0.1..2 of the square's, cut at it; without masks boxes do."""
    random_state = state(rng)
    image, given = discs(random_state)
    del given["masks"]
    sides = []
    for _ in range(60):
        tensor, new = LargeScaleJitter(80)(image, given, random_state)
        assert max(tensor.shape[1:]) <= 80
        assert ((new["boxes"][:, 2:] > 0) & (new["boxes"][:, 2:] <= 1)).all()
        sides.append(max(tensor.shape[1:]))
    assert min(sides) < 40
    assert 15 <= sides.count(80) <= 50, "half of the multiples are above 1"
    one_pixel = LargeScaleJitter(4, (0.1, 0.1))
    assert one_pixel(Image.new("RGB", (3, 900)), target(torch.zeros(0, 900, 3).bool()), random_state)[
        0
    ].shape == (3, 1, 1)


def test_boxes_and_areas_after_jitter_are_those_of_the_masks(rng: torch.Generator) -> None:
    """An annotated box that does not fit its mask is replaced."""
    random_state = state(rng)
    image, given = discs(random_state)
    given["boxes"] = torch.tensor([[0.0, 0, image.width, image.height]]).expand(3, 4)
    for _ in range(10):
        tensor, new = LargeScaleJitter(100)(image, given, random_state)
        scale = torch.tensor([tensor.shape[2], tensor.shape[1]] * 2)
        torch.testing.assert_close(box_cxcywh_to_xyxy(new["boxes"]) * scale, tight_boxes(new["masks"]))
        assert new["area"].tolist() == new["masks"].sum((1, 2)).tolist()


def test_bad_jitter() -> None:
    with pytest.raises(ValueError, match="size: expected >= 1 pixel; got 0"):
        LargeScaleJitter(0)
    with pytest.raises(ValueError, match="scale: expected 0 < smallest <= largest"):
        LargeScaleJitter(64, (2.0, 0.1))
