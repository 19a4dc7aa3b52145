"""Names of any alphabet can be read in pictures, or stand by their ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.drawing.boxes import draw_detections
from detr_fast.drawing.fonts import caption_font, drawable
from detr_fast.tasks import TASKS

NAMES = ["Straße", "voilà", "Łódź", "человек", "αυτοκίνητο", "đường", "name", "café 0.93"]


@pytest.mark.parametrize("name", NAMES)
def test_letters_are_letters(name: str) -> None:
    font = caption_font((640, 640), name)
    unknown = bytes(caption_font((640, 640), "é").getmask("\U0010fffd"))  # what stands for a missing letter
    for letter in set(name) - {" "}:
        assert bytes(font.getmask(letter)) not in (unknown, b"")
    assert drawable(7, name) == name


@pytest.mark.parametrize("name", ["汽车", "車 car", "emoji 🚗"])
def test_names_that_the_fonts_lack_are_ids(name: str) -> None:
    assert drawable(7, name) == "class 7"


def test_pictures_carry_the_names() -> None:
    image = Image.new("RGB", (300, 200))
    result = {
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
        "boxes": torch.tensor([[20.0, 60, 200, 150], [90.0, 20, 250, 190]]),
    }
    drawn = {
        name: TASKS["detection"].overlay(image, result, {1: (7, name)})
        for name in ("человек", "汽车", "class 7")
    }
    assert drawn["汽车"].tobytes() == drawn["class 7"].tobytes()
    assert drawn["человек"].tobytes() != drawn["class 7"].tobytes()


def test_ascii_looks_as_it_did() -> None:
    image = Image.new("RGB", (300, 200))
    plain = draw_detections(image, [[20, 60, 200, 150]], [1], ["cat 0.90"])
    font = caption_font(image.size)
    assert font.getname()[0] != "DejaVu Sans"  # type: ignore[union-attr]
    assert np.asarray(plain).any()
