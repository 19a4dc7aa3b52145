"""`Detector` as people call it: any kind of image, one or many, results as typed records, exported files."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from PIL import Image

import detr_fast
from detr_fast import machine
from detr_fast.engine import (
    FAMILIES,
    DetectionResult,
    Detector,
    InstanceResult,
    PanopticResult,
    SemanticResult,
)
from detr_fast.engine.exported import KEY, open_file
from detr_fast.export import export
from tests.export.test_export import detector_of
from tests.paths import ROOT

SIZES = [(70, 50), (40, 64), (64, 64)]


@pytest.fixture
def pictures(rng: torch.Generator) -> list[Image.Image]:
    return [
        Image.fromarray(torch.randint(256, (h, w, 3), generator=rng, dtype=torch.uint8).numpy())
        for w, h in SIZES
    ]


@pytest.fixture
def detector(rng: torch.Generator) -> Detector:
    return detector_of("detr", rng)


def same(one: DetectionResult, other: DetectionResult, atol: float = 0.0) -> None:
    assert one.labels.tolist() == other.labels.tolist()
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=atol)
    torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=100 * atol)


def test_the_public_class_is_imported_when_it_is_asked_for() -> None:
    program = "import sys, detr_fast; print('PIL' in sys.modules); print(detr_fast.Detector.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "Detector"]
    assert detr_fast.Detector is Detector
    with pytest.raises(AttributeError, match="no attribute 'Detectors'"):
        detr_fast.Detectors  # noqa: B018


def test_every_kind_of_image_is_the_same_image(
    detector: Detector, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pictures[0]
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    opaque = np.concatenate([array, np.full((*array.shape[:2], 1), 7, np.uint8)], axis=2)
    expected = detector(image, threshold=0.0)
    assert isinstance(expected, DetectionResult)
    assert len(expected) > 0
    monkeypatch.setenv("HOME", str(tmp_path))
    kinds: list[Any] = [
        tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png", array, array[::-1][::-1], opaque, tensor,
        tensor.float() / 255, tensor.double() / 255, torch.from_numpy(opaque).permute(2, 0, 1),
        image.convert("RGBA"),
    ]  # fmt: skip
    for kind in kinds:
        same(detector(kind, threshold=0.0), expected)
    gray = image.convert("L")
    pixels = np.asarray(gray)
    expected = detector(gray, threshold=0.0)
    for kind in (pixels, pixels[..., None], torch.from_numpy(pixels.copy())[None]):
        same(detector(kind, threshold=0.0), expected)


def test_files_are_turned_upright_and_pictures_are_taken_as_they_are(
    detector: Detector, pictures: list[Image.Image], tmp_path: Path
) -> None:
    exif = pictures[0].getexif()
    exif[0x0112] = 6
    pictures[0].save(tmp_path / "turned.png", exif=exif)
    assert detector(tmp_path / "turned.png").image.size == SIZES[0][::-1]
    assert detector(Image.open(tmp_path / "turned.png")).image.size == SIZES[0]


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3)), TypeError, r"images: expected an array of uint8; got float64"),
        (np.zeros((3, 40, 50), np.uint8), ValueError, r"images: expected \[h, w\] or .*; got \[3, 40, 50\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"images: expected at least 1 x 1 pixels"),
        (torch.zeros(40, 50, 3), ValueError, r"images: expected \[1, 3 or 4, h, w\]; got \[40, 50, 3\]"),
        (torch.zeros(40, 50), ValueError, r"images: expected \[1, 3 or 4, h, w\]; got \[40, 50\]"),
        (torch.full((3, 4, 4), 200.0), ValueError, r"images: expected floats in 0..1; got 200..200"),
        (torch.full((3, 4, 4), torch.nan), ValueError, r"images: expected floats in 0..1; got nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, r"images: expected a tensor of uint8 or floats"),
        (torch.zeros(3, 0, 4), ValueError, r"images: expected at least 1 x 1 pixels; got \[3, 0, 4\]"),
        ([Image.new("RGB", (4, 4)), 3], TypeError, r"images\[1\]: expected a path, a PIL image"),
        (b"\xff\xd8", TypeError, r"images: expected a path, .*, or several; got bytes"),
        (None, TypeError, r"images: expected a path, .*, or several; got NoneType"),
        (Image.new("F", (4, 4)), ValueError, r"images: a floating-point image has no defined range"),
        ("absent.png", FileNotFoundError, r"absent.png: no such image file"),
    ],
)
def test_what_is_no_image_is_named(
    detector: Detector, image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        detector(image)


def test_many_images_come_back_in_order(detector: Detector, pictures: list[Image.Image]) -> None:
    alone = [detector(picture, threshold=0.0) for picture in pictures]
    listed = detector(pictures, threshold=0.0)
    assert [result.image.size for result in listed] == SIZES
    for one, other in zip(listed, alone, strict=True):
        same(one, other)
    # the stem's group norm sees the padding of mixed sizes
    assert [result.image.size for result in detector(iter(pictures), 0.0, batch_size=2)] == SIZES
    stack = np.stack([np.asarray(pictures[2])] * 2)
    for batch in (stack, torch.from_numpy(stack).permute(0, 3, 1, 2)):
        for result in detector(batch, threshold=0.0, batch_size=2):
            same(result, alone[2], atol=1e-4)
    assert detector([]) == []
    with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
        detector(pictures, batch_size=0)
    with pytest.raises(ValueError, match=r"threshold: expected a score in 0\.\.1; got -1"):
        detector([], threshold=-1)


def test_a_stream_holds_one_batch(detector: Detector, pictures: list[Image.Image]) -> None:
    read = []

    def source() -> Any:
        for picture in pictures:
            read.append(picture)
            yield picture

    stream = detector.stream(source(), batch_size=2)
    assert not read
    next(stream)
    assert len(read) == 2
    assert len(list(stream)) == 2


def test_detections_as_coco_supervision_and_picture(detector: Detector, pictures: list[Image.Image]) -> None:
    result = detector(pictures[0], threshold=0.0)
    rows = result.to_coco(17)
    assert [row["category_id"] for row in rows] == [label + 1 for label in result.labels.tolist()]
    x0, y0, x1, y1 = result.boxes_xyxy[0].tolist()
    assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    assert {row["image_id"] for row in rows} == {17}
    json.dumps([rows, result.records])
    assert result.names == [record["name"] for record in result.records]
    theirs = result.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, result.boxes_xyxy.numpy())
    assert theirs.class_id.tolist() == result.labels.tolist()
    assert theirs.data["class_name"].tolist() == result.names
    assert theirs.mask is None
    assert result.draw().size == SIZES[0]
    assert result.draw().tobytes() != pictures[0].tobytes()
    assert repr(result).startswith("DetectionResult(70x50: thing ")


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_masks_agree_in_every_form(task: str, rng: torch.Generator, pictures: list[Image.Image]) -> None:
    from pycocotools import mask as rle

    for _ in range(20):  # random weights may find nothing
        result = detector_of("mask2former", rng).with_task(task)(pictures[0], threshold=0.0)
        if len(result):
            break
    rows = result.to_coco("a")
    theirs = result.to_supervision()
    json.dumps([rows, result.records])
    assert len(theirs) == len(result) > 0
    assert theirs.mask.shape[1:] == (50, 70)
    if isinstance(result, PanopticResult):
        info = rows[0]["segments_info"]
        assert [segment["area"] for segment in info] == theirs.mask.sum((1, 2)).tolist()
        assert theirs.data["class_name"].tolist() == [record["name"] for record in result.records]
        ids = np.asarray(result.id_map()).astype(int) @ [1, 256, 65536]
        np.testing.assert_array_equal(ids, result.segmentation.numpy())
    else:
        assert isinstance(result, InstanceResult | SemanticResult)
        decoded = np.stack([rle.decode(row["segmentation"]) for row in rows]).astype(bool)
        np.testing.assert_array_equal(decoded, theirs.mask)
        assert [row["category_id"] - 1 for row in rows] == theirs.class_id.tolist()
    assert result.draw().width == 70


def test_nothing_found_is_nothing_everywhere(detector: Detector, pictures: list[Image.Image]) -> None:
    result = detector(pictures[0], threshold=1.0)
    assert (len(result), result.records, result.to_coco(1), len(result.to_supervision())) == (0, [], [], 0)
    assert result.draw().tobytes() == pictures[0].tobytes()
    assert detector.attention(result) is None


def test_supervision_is_named_where_it_is_missing(
    detector: Detector, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="supervision is not installed; `pip install supervision`"):
        detector(pictures[0]).to_supervision()


def test_exported_files_answer_as_the_detector(
    detector: Detector, pictures: list[Image.Image], tmp_path: Path
) -> None:
    onnx = export(detector, tmp_path / "model.onnx", example=(2, 3, 64, 96))
    model = openvino.convert_model(onnx)
    model.set_rt_info(json.dumps(open_file(onnx)[1]), KEY)
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    expected = detector(pictures, 0.0)
    for path in (onnx, tmp_path / "model.xml"):
        again = Detector.load(path, threads=1)
        for one, other in zip(expected, again(pictures, 0.0), strict=True):
            same(one, other, atol=1e-4)
            assert one.names == other.names
        for option, message in (
            ({"device": "meta"}, "device: an exported file runs on the CPU"),
            ({"compile": True}, "compile: an exported file is compiled already"),
            ({"dtype": "float16"}, f"dtype: {path.name} computes in float32"),
        ):
            with pytest.raises(ValueError, match=message):
                Detector.load(path, **option)
    half = Detector.load(tmp_path / "model.xml", dtype="bfloat16")(pictures[0], 0.0)
    assert len(half) == len(expected[0])


@pytest.fixture
def checkpoint(detector: Detector, tmp_path: Path) -> Path:
    torch.save(
        {"model": detector.model.state_dict(), "detector": detector.description()}, tmp_path / "best.pt"
    )
    return tmp_path / "best.pt"


def test_options_of_loading(detector: Detector, checkpoint: Path, pictures: list[Image.Image]) -> None:
    threads = torch.get_num_threads()
    expected = detector(pictures[0], 0.0)
    try:
        same(Detector.load(checkpoint, device="cpu", threads=1)(pictures[0], 0.0), expected)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    half = Detector.load(checkpoint, device="cpu", dtype="bfloat16")(pictures[0], 0.0)
    assert half.scores.dtype == half.boxes_xyxy.dtype == torch.float32
    torch.testing.assert_close(half.scores, expected.scores, rtol=0, atol=0.05)
    assert not torch.equal(half.scores, expected.scores)
    for options, message in (
        ({"dtype": "float16"}, "dtype: float16 needs a GPU"),
        ({"dtype": "int8"}, "dtype: expected float32, bfloat16 or float16; got int8"),
        ({"threads": 0}, "threads: expected at least 1; got 0"),
        ({"device": "abacus"}, "device: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            Detector.load(checkpoint, **{"device": "cpu", **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_in_bfloat16(
    family: str, rng: torch.Generator, pictures: list[Image.Image]
) -> None:
    detector = detector_of(family, rng)
    single = detector(pictures[0], 0.0)
    half = dataclasses.replace(detector, dtype=torch.bfloat16)(pictures[0], 0.0)
    for name, value in vars(single).items():
        other = getattr(half, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype
            assert other.isfinite().all()
    if isinstance(single, DetectionResult):
        assert len(single) == len(half)
        torch.testing.assert_close(half.scores, single.scores, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2", False),
        ("nothing", None),
    ],
)
def test_bfloat16_without_instructions_is_remarked(
    flags: str, known: bool | None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text
    text = f"processor\t: 0\n{flags}\n"
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **k: text if self.name == "cpuinfo" else read(self, *a, **k)
    )
    assert machine.cpu_has_bfloat16() is known
    remarks = Detector.load(checkpoint, device="cpu", dtype="bfloat16").remarks
    assert any("no instructions for bfloat16" in remark for remark in remarks) == (known is False)


def test_compiled_it_answers_the_same(
    detector: Detector, checkpoint: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles = torch.nn.Module.compile
    # without minutes of C++
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compiles(model, backend="eager"))
    compiled = Detector.load(checkpoint, device="cpu", compile=True)
    assert compiled.model._compiled_call_impl is not None
    for one, other in zip(compiled(pictures, 0.0), detector(pictures, 0.0), strict=True):
        same(one, other, atol=1e-5)


def test_the_guide_is_right(
    checkpoint: Path, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures[0].save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/serving.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    for code in blocks:
        exec(code, scope)
    assert len(scope["results"]) == 2
    assert (tmp_path / "street-boxes.png").is_file()
