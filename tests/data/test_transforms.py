"""Boxes stay on their objects: a painted rectangle is found again in the pixels of the transformed image."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy
from detr_fast.data import EvalTransform, Target, TrainTransform, resized_size
from detr_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, crop, hflip, random_crop_box, resize


def painted(width: int, height: int, boxes: list[list[int]]) -> tuple[Image.Image, Target]:
    """A black image with a box in each colour channel, and its target; labels name the channels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1, channel] = 255
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Image.fromarray(pixels), {
        "boxes": corners,
        "labels": torch.arange(len(boxes)),
        "area": (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "image_id": torch.tensor([1]),
        "orig_size": torch.tensor([height, width]),
    }


def random_painted(random_state: random.Random) -> tuple[Image.Image, Target]:
    width, height = random_state.randint(60, 260), random_state.randint(60, 260)
    boxes = []
    for _ in range(3):
        x0, y0 = random_state.randrange(width - 16), random_state.randrange(height - 16)
        boxes.append([x0, y0, random_state.randint(x0 + 16, width), random_state.randint(y0 + 16, height)])
    return painted(width, height, boxes)


def bounds(channel: Tensor) -> list[int]:
    """(x0, y0, x1, y1) of the pixels above half brightness."""
    rows, columns = (torch.nonzero((channel > 0.5).any(dim)).flatten() for dim in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def check(image: Tensor, target: Target, tolerance: float) -> None:
    height, width = image.shape[1:]
    assert target["size"].tolist() == [height, width]
    assert len({len(target[key]) for key in ("boxes", "labels", "area", "iscrowd")}) == 1
    brightness = (
        image * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    )
    boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
    for label, box in zip(target["labels"].tolist(), boxes, strict=True):
        if (box[2:] - box[:2]).min() >= 2:  # a thinner rest may stay below half brightness
            found = torch.tensor(bounds(brightness[label])).float()
            torch.testing.assert_close(box, found, atol=tolerance, rtol=0)
    for label in {0, 1, 2} - set(target["labels"].tolist()):
        assert brightness[label].max() < 0.51, "a box was removed but its object is visible"


def test_training_keeps_boxes_on_objects(rng: torch.Generator) -> None:
    random_state = random.Random(int(torch.randint(2**31, (), generator=rng)))
    transform = TrainTransform((90, 110, 140), 230, crop_scales=(80, 120), crop_size=(50, 100))
    removed = 0
    for _ in range(120):
        image, target = random_painted(random_state)
        tensor, new = transform(image, target, random_state)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        # Half a pixel of rounding, and half a pixel blended before a crop is enlarged (at most 2.8 times).
        check(tensor, new, tolerance=2)
        removed += len(target["labels"]) - len(new["labels"])
        # The short side is a scale, or the long side is near the bound of 230.
        assert min(new["size"]) in (90, 110, 140) or max(new["size"]) in range(224, 237)
    assert removed > 0, "no crop removed a box: the test does not reach that case"


def test_evaluation_keeps_boxes_on_objects(rng: torch.Generator) -> None:
    random_state = random.Random(int(torch.randint(2**31, (), generator=rng)))
    for _ in range(20):
        image, target = random_painted(random_state)
        tensor, new = EvalTransform(120, 200)(image, target, random_state)
        check(tensor, new, tolerance=1)
        assert new["labels"].tolist() == [0, 1, 2]
        scale = tensor.shape[1] * tensor.shape[2] / (image.width * image.height)
        torch.testing.assert_close(new["area"], target["area"] * scale)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (640, 480, (1066, 800)),
        (480, 640, (800, 1066)),
        (500, 500, (800, 800)),
        (800, 800, (800, 800)),
        (1000, 300, (1333, 400)),
        (300, 1000, (400, 1333)),
        (640, 383, (1333, 798)),
        (5000, 1, (5000, 1)),
    ],
)
def test_official_sizes(width: int, height: int, expected: tuple[int, int]) -> None:
    assert resized_size(width, height, 800, 1333) == expected


def test_hflip_and_crop_by_hand() -> None:
    image, target = painted(100, 50, [[10, 5, 30, 25], [0, 40, 100, 50], [90, 0, 100, 10]])
    flipped_image, flipped = hflip(image, target)
    assert flipped["boxes"].tolist() == [[70, 5, 90, 25], [0, 40, 100, 50], [0, 0, 10, 10]]
    assert np.asarray(flipped_image)[5:25, 70:90, 0].min() == 255
    cropped_image, cropped = crop(image, target, (20, 10, 40, 35))
    assert cropped_image.size == (40, 35)
    assert cropped["boxes"].tolist() == [[0, 0, 10, 15], [0, 30, 40, 35]]
    assert cropped["area"].tolist() == [150, 200]
    assert cropped["labels"].tolist() == [0, 1]
    assert target["labels"].tolist() == [0, 1, 2], "the given target is left alone"


def test_no_objects_survive_every_transform(rng: torch.Generator) -> None:
    random_state = random.Random(int(torch.randint(2**31, (), generator=rng)))
    for transform in (EvalTransform(64), TrainTransform.for_scales((64,), 100)):
        for _ in range(8):
            image, target = painted(50, 70, [])
            tensor, new = transform(image, target, random_state)
            assert new["boxes"].shape == (0, 4)
            assert new["labels"].dtype == torch.int64
            assert tensor.isfinite().all()


def test_tiny_images_are_cropped_to_what_there_is(rng: torch.Generator) -> None:
    random_state = random.Random(int(torch.randint(2**31, (), generator=rng)))
    assert random_crop_box((3, 700), 384, 600, random_state)[::2] == (0, 3)
    for _ in range(8):
        image, target = painted(1, 1, [[0, 0, 1, 1]])
        tensor, new = TrainTransform.for_scales((64,))(image, target, random_state)
        assert min(tensor.shape[1:]) == 64
        torch.testing.assert_close(new["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))


def test_resize_is_pillows(rng: torch.Generator) -> None:
    pixels = torch.randint(256, (40, 60, 3), dtype=torch.uint8, generator=rng).numpy()
    _, target = painted(60, 40, [])
    resized, _ = resize(Image.fromarray(pixels), target, 25)
    expected = Image.fromarray(pixels).resize((37, 25), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(resized), np.asarray(expected))


def test_scaled_crops() -> None:
    assert TrainTransform.for_scales(range(480, 801, 32)) == TrainTransform()
    small = TrainTransform.for_scales((160, 200))
    assert (small.crop_scales, small.crop_size) == ((100, 125, 150), (96, 150))
    with pytest.raises(ValueError, match="scales"):
        TrainTransform.for_scales(())


def test_the_generator_makes_every_choice(rng: torch.Generator) -> None:
    seed = int(torch.randint(2**31, (), generator=rng))
    image, target = random_painted(random.Random(seed))
    transform = TrainTransform.for_scales((64, 80, 96), 160)
    samples = []
    for _ in range(2):
        random.random()
        torch.rand(1)  # the global states go on, and do not matter
        samples.append([transform(image, target, random.Random(seed + i)) for i in range(10)])
    shapes = set()
    for (image_a, target_a), (image_b, target_b) in zip(*samples, strict=True):
        assert torch.equal(image_a, image_b)
        assert all(torch.equal(target_a[key], target_b[key]) for key in target_a)
        shapes.add(image_a.shape)
    assert len(shapes) > 1
