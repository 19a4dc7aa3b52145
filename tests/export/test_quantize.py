"""Files in 8 bits: made by onnxruntime's tool, kept only where the answers stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from detr_fast.engine import load_detector
from detr_fast.export import export_int8, quantize
from tests.cli.running import ok, refused
from tests.engine.tiny import dataset, detector_of, detr, write_data

EXAMPLE = (2, 3, 64, 96)


def test_convolutions_in_8_bits(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    images = dataset(data, "val", train=False)
    model = detr(images.num_classes).eval()
    detector = detector_of(model, images)
    folder = next(path for path in data.rglob("*.png")).parent
    out = tmp_path / "out"
    out.mkdir()

    found = export_int8(detector, out / "model.onnx", folder, images, example=EXAMPLE)
    assert (found.metric, found.path) == ("AP", out / "model.onnx")
    assert [file.name for file in out.iterdir()] == ["model.onnx"]
    graph = onnx.load(found.path)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("QuantizeLinear") >= operators.count("Conv") >= 4
    assert [opset.domain for opset in graph.opset_import] == [""]
    again = load_detector(found.path)
    assert again.description() == detector.description()
    pixels = torch.randn(2, 3, 64, 96, generator=rng)
    with torch.no_grad():
        expected, given = detector.model(pixels), again.model(quantize.padded(again, list(pixels)))
    difference = (given.logits - expected.logits[-1:]).abs().max()
    assert 0 < difference < 0.3 * expected.logits.abs().max()

    # the plain file once more, without recording it again
    monkeypatch.setattr(quantize, "export", lambda d, path, **_: path.write_bytes(plain) and path)
    plain = found.path.read_bytes()
    monkeypatch.setattr(quantize, "_quantize", lambda d, a, b, images: b.write_bytes(a.read_bytes()))
    scores = iter([0.5, 0.4, 0.5, 0.4])
    monkeypatch.setattr(quantize, "evaluate", lambda d, images: {"AP": next(scores)})
    with pytest.raises(
        ValueError, match=r"fall by no more than 0\.05; in 8 bits it fell from 0\.5000 to 0\.4000"
    ):
        export_int8(detector, out / "other.onnx", folder, images, max_drop=0.05)
    assert [file.name for file in out.iterdir()] == ["model.onnx"]
    found = export_int8(detector, out / "other.xml", folder, images, max_drop=0.2)
    assert (found.before, found.after) == (0.5, 0.4)
    assert {file.name for file in out.iterdir()} == {"model.onnx", "other.xml", "other.bin"}
    assert load_detector(out / "other.xml").description() == detector.description()


def test_bad_requests(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    images = dataset(data, "val", train=False)
    detector = detector_of(detr(images.num_classes), images)
    (tmp_path / "empty").mkdir()
    calls: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"path": "a.pt2"}, ValueError, "expected one of onnx, tensorrt, openvino with int8; got torch"),
        ({"max_drop": 2}, ValueError, r"max_drop: expected a share in 0\.\.1; got 2"),
        ({"calibration": tmp_path / "none"}, FileNotFoundError, "none: expected a folder of images"),
        ({"calibration": tmp_path / "empty"}, ValueError, "empty"),
    )
    for change, error, message in calls:
        given: dict[str, Any] = {"path": "a.onnx", "calibration": data, "dataset": images, **change}
        with pytest.raises(error, match=message):
            export_int8(detector, tmp_path / given.pop("path"), **given)
    assert {file.name for file in tmp_path.iterdir()} == {"data", "empty"}


def test_the_command_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data")
    images = dataset(data, "val", train=False)
    detector = detector_of(detr(images.num_classes), images)
    state = {"model": detector.model.state_dict(), "detector": detector.description()}
    torch.save(state, tmp_path / "last.pt")
    result = quantize.Quantized("AP", 0.5, 0.495, tmp_path / "a.onnx")
    calls = []
    monkeypatch.setattr("detr_fast.cli.export.export_int8", lambda *a, **k: calls.append((a, k)) or result)
    command = (
        "export",
        tmp_path / "last.pt",
        "--output",
        tmp_path / "a.onnx",
        "--int8",
        data,
        "--max-drop",
        "0.02",
    )
    assert "AP: 0.5000 in float32, 0.4950 in 8 bits" in ok(*command, "--data", data)
    ((_, path, folder, measured), options) = calls[0]
    assert (path, folder, options["max_drop"]) == (tmp_path / "a.onnx", data, 0.02)
    assert len(measured) == len(images)
    assert "half: expected it without int8" in refused(*command, "--half")
    assert "expected" in refused(*command)  # nothing to measure on
