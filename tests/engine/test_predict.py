"""From image files to records and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.drawing.boxes import class_color, draw_detections
from detr_fast.engine import Detector, PredictionError, detect, predict_files
from detr_fast.structures import PaddedImages, Predictions
from tests.engine.tiny import SIZE, detr


class Fixed(nn.Module):
    """Finds class 1 at the left half with a score of 0.8, class 3 (no category) and class 2 outside."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Size] = []

    def forward(self, images: PaddedImages) -> Predictions:
        self.seen.append(images.tensors.shape)
        scores = torch.tensor(
            [[0.0, 0.8, 0.1, 0.0, 0.1], [0.0, 0.0, 0.0, 0.9, 0.1], [0.0, 0.1, 0.6, 0.0, 0.3]]
        )
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.1, 0.1], [0.9, 0.9, 0.4, 0.4]])
        logits = scores.clamp(min=1e-9).log().expand(1, len(images), -1, -1)
        return Predictions(logits, boxes.expand(1, len(images), -1, -1))


@pytest.fixture
def detector() -> Detector:
    return Detector(Fixed(), {1: (1, "disc"), 2: (20, "cross")}, SIZE, 2 * SIZE)  # type: ignore[arg-type]


def test_detections_are_sorted_named_and_inside(detector: Detector) -> None:
    found = detect(detector, Image.new("RGB", (80, 40)), threshold=0.5)
    assert [(d["label"], d["category_id"], d["name"]) for d in found] == [(1, 1, "disc"), (2, 20, "cross")]
    assert [d["score"] for d in found] == pytest.approx([0.8, 0.6])
    assert found[0]["box_xyxy"] == pytest.approx([0, 0, 40, 40])
    assert found[1]["box_xyxy"] == pytest.approx([56, 28, 80, 40])
    # the short side becomes SIZE, the long side twice that at most
    assert detector.model.seen[-1] == (1, 3, SIZE, 2 * SIZE)  # type: ignore[attr-defined]
    assert len(detect(detector, Image.new("RGB", (80, 40)), threshold=0.7)) == 1
    with pytest.raises(ValueError, match="threshold: expected a score in 0..1; got 1.5"):  # noqa: RUF043
        detect(detector, Image.new("RGB", (8, 8)), threshold=1.5)


def test_files_of_every_kind(detector: Detector, tmp_path: Path) -> None:
    turned = Image.new("RGB", (60, 30))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (20, 30)).save(tmp_path / "gray.png")
    Image.new("CMYK", (20, 30)).save(tmp_path / "cmyk.jpg")
    Image.new("I;16", (20, 30)).save(tmp_path / "deep.png")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "other" / "gray.png")
    files = [tmp_path / name for name in ("turned.jpg", "gray.png", "cmyk.jpg", "deep.png", "other/gray.png")]
    records = list(predict_files(detector, files, output=tmp_path / "overlays"))
    assert [record["file"] for record in records] == [str(file) for file in files]
    assert (records[0]["width"], records[0]["height"]) == (30, 60)
    json.dumps(records)
    drawn = {path.name: Image.open(path).size for path in (tmp_path / "overlays").iterdir()}
    assert drawn == {
        "turned.png": (30, 60),
        "gray.png": (20, 30),
        "cmyk.png": (20, 30),
        "deep.png": (20, 30),
        "gray_2.png": (4, 4),
    }


def test_bad_files_are_named(detector: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    with pytest.raises(PredictionError, match=r"1 files could not be used: .*cut\.jpg"):
        list(predict_files(detector, [tmp_path / "cut.jpg"]))
    with pytest.raises(PredictionError, match=r"absent\.jpg: no such image file"):
        list(predict_files(detector, [tmp_path / "absent.jpg"]))


def test_bad_files_cost_no_results(detector: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.jpg")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    files = [tmp_path / n for n in ("empty.png", "a.jpg", "text.png", "absent.jpg", "folder.png", "b.jpg")]
    records = []
    predicted = predict_files(detector, files, output=tmp_path / "out")
    records.append(next(predicted))
    records.append(next(predicted))
    with pytest.raises(PredictionError) as caught:
        next(predicted)
    assert [record["file"] for record in records] == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert [file for file, _ in caught.value.failures] == [str(files[i]) for i in (0, 2, 3, 4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("how", ["same", "symlink", "hard link", "linked folder", "ids", "json", "to come"])
def test_nothing_is_written_over_an_input(
    how: str, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, output = Path("a.png"), Path("out")
    Image.effect_noise((40, 30), 50).convert("RGB").save(source)
    output.mkdir()
    files = [source]
    if how == "same":
        output = Path()
    elif how == "symlink":
        (output / "a.png").symlink_to("../a.png")
    elif how == "hard link":
        (output / "a.png").hardlink_to(source)
    elif how == "linked folder":
        output = Path("elsewhere")
        output.symlink_to(".")
    elif how == "ids":
        (output / "ids").symlink_to("..")
    elif how == "json":
        (output / "predictions.json").hardlink_to(source)
    else:
        files = [source, output / "a.png"]  # the second is what the first would leave
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"output: .* would be written over the input .*a\.png"):
        list(predict_files(detector, files, output=output))
    assert source.read_bytes() == before
    assert not (Path("out") / "b.png").exists()


def test_equal_stems_get_names_of_their_own(detector: Detector, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("x/a.png", "y/a.jpg", "y/a_2.png", "z/A.png")]
    for width, file in enumerate(files, start=10):
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (width, 8)).save(file)
    assert len(list(predict_files(detector, [*files, files[0]], output=tmp_path / "out"))) == 5
    widths = {path.name: Image.open(path).width for path in (tmp_path / "out").iterdir()}
    assert widths == {"a.png": 10, "a_2.png": 11, "a_2_2.png": 12, "A_3.png": 13, "a_4.png": 10}


def test_real_model_runs() -> None:
    detector = Detector(detr(), {label: (label, str(label)) for label in range(8)}, SIZE, SIZE)
    found = detect(detector, Image.new("RGB", (50, 40)), threshold=0.0)
    assert len(found) == 5
    assert not detector.model.training


@pytest.mark.parametrize("size", [(5, 5), (64, 48), (2000, 1500)])
def test_drawing_marks_the_box_and_leaves_the_original(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    width, height = size
    box = [0.2 * width, 0.4 * height, 0.8 * width, 0.9 * height]
    outside = [-5.0, -5.0, 2.0 * width, 2.0 * height]
    drawn = draw_detections(image, [box, outside], [4, 5], ["car 0.90", "a very long caption " * 5])
    assert drawn.size == size
    assert drawn.getpixel((round(box[0]), round((box[1] + box[3]) / 2))) == class_color(4)
    assert image.getextrema() == ((0, 0),) * 3


def test_nothing_to_draw_changes_nothing() -> None:
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    assert draw_detections(image, [], [], []).tobytes() == image.tobytes()


def test_neighbouring_classes_differ_in_colour() -> None:
    for label in range(90):
        near = class_color(label)
        assert max(abs(a - b) for a, b in zip(near, class_color(label + 1), strict=True)) > 80
