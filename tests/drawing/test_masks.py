"""Pictures of masks: what is coloured, what is left alone, and odd input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.drawing.boxes import class_color
from detr_fast.drawing.masks import draw_instances, draw_panoptic, draw_semantic, stuff_color

SIZES = [(64, 48), (1, 1), (5, 5), (700, 30)]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 50).convert("RGB")


def left_half(size: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(size[1], size[0], dtype=torch.bool)
    mask[:, : max(1, size[0] // 2)] = True
    return mask


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    after = after.crop((0, 0, *before.size))
    return (np.asarray(before).astype(int) != np.asarray(after)).any(-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("boxes", [False, True])
def test_instances(size: tuple[int, int], boxes: bool) -> None:
    image, mask = noise(size), left_half(size)
    before = image.copy()
    masks = torch.stack([mask, torch.zeros_like(mask), mask])
    places = [[0, 0, size[0] / 2, size[1]], [0, 0, 0, 0], [0, 0, size[0] / 2, size[1]]] if boxes else None
    drawn = draw_instances(image, masks, places, [3, 3, 4], ["", "nowhere" if boxes else "", ""])
    assert drawn.size == size
    assert image.tobytes() == before.tobytes()
    outline = drawn.getpixel((0, size[1] // 2))
    assert outline == class_color(3), "the best is on top"
    if not boxes:
        inside = changed(image, drawn)
        assert not (inside & ~mask.numpy()).any()
        assert inside[mask.numpy()].mean() > 0.9


def test_instances_of_a_class_differ() -> None:
    image = Image.new("RGB", (60, 10))
    masks = np.zeros((6, 10, 60), bool)
    for i in range(6):
        masks[i, :, 10 * i : 10 * i + 10] = True
    pixels = np.asarray(draw_instances(image, masks, None, [7] * 6, [""] * 6)).astype(int)
    colors = pixels[0, 5::10]
    differences = np.abs(colors[:, None] - colors[None]).max(-1) + 255 * np.eye(6, dtype=int)
    assert differences.min() > 20


@pytest.mark.parametrize("size", SIZES)
def test_panoptic(size: tuple[int, int]) -> None:
    image, mask = noise(size), left_half(size)
    ids = torch.where(mask, 5, 0).int()
    for isthing in (False, True):
        drawn = draw_panoptic(image, ids, [{"id": 5, "label": 2, "isthing": isthing, "caption": "sea"}])
        assert drawn.size == size
    flat = np.asarray(draw_panoptic(Image.new("RGB", (40, 40)), np.full((40, 40), 9), [
        {"id": 9, "label": 2, "isthing": False}
    ])).astype(int)  # fmt: skip
    assert np.abs(flat - 0.6 * np.array(stuff_color(2))).max() <= 1


def test_nothing_to_draw_changes_nothing() -> None:
    image = noise((40, 30))
    nothing = np.zeros((30, 40), int)
    assert draw_instances(image, np.zeros((0, 30, 40), bool), [], [], []).tobytes() == image.tobytes()
    assert draw_panoptic(image, nothing, []).tobytes() == image.tobytes()
    assert draw_semantic(image, nothing + 255, {}).tobytes() == image.tobytes()


def test_captions_do_not_cover_each_other() -> None:
    """Of two captions for one place, that of the larger segment is written."""
    image, ids = Image.new("RGB", (200, 100)), np.zeros((100, 200), int)
    ids[:, :100], ids[48:52, 100:104] = 1, 2
    wall = {"id": 1, "label": 1, "isthing": False, "caption": "a wall with a long name"}
    silent, clock = ({"id": 2, "label": 2, "isthing": True, "caption": text} for text in ("", "clock"))
    without = draw_panoptic(image, ids, [wall, silent])
    assert draw_panoptic(image, ids, [wall, clock]).tobytes() == without.tobytes()
    assert draw_panoptic(image, ids, [{**wall, "caption": ""}, clock]).tobytes() != without.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_semantic_legend_stands_below(size: tuple[int, int]) -> None:
    image = noise(size)
    labels = torch.where(left_half(size), 3, 255)
    drawn = draw_semantic(image, labels, {3: "grass"})
    assert drawn.width == size[0]
    assert drawn.height > size[1]
    if size == (64, 48):
        assert not changed(image, drawn)[:, 34:].any()
        many = torch.arange(size[0] * size[1]).reshape(size[1], size[0]) % 40
        assert draw_semantic(image, many, {}).height > drawn.height


def test_wrong_sizes() -> None:
    image = noise((8, 6))
    with pytest.raises(
        ValueError, match=r"masks: expected \[X, h, w\] with \(h, w\) = \(6, 8\); got \[2, 8, 6\]"
    ):
        draw_instances(image, np.zeros((2, 8, 6), bool), None, [1, 2], ["", ""])
    with pytest.raises(ValueError, match=r"segmentation: expected \[h, w\] with \(h, w\) = \(6, 8\)"):
        draw_panoptic(image, np.zeros((6, 9), int), [])
    with pytest.raises(ValueError, match=r"labels: expected \[h, w\] with \(h, w\) = \(6, 8\)"):
        draw_semantic(image, np.zeros((1, 6, 8), int), {})
