"""Exported files do what the detector does, whatever the batch and the sizes, and say what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from detr_fast.engine import FAMILIES, Detector, load_detector, predict_image
from detr_fast.engine.exported import ExportedModel
from detr_fast.export import export, write
from detr_fast.export.attention import ms_deform_attn_by_grid_sample
from detr_fast.ops.ms_deform_attn import reference
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.structures import PaddedImages
from tests.cli.running import ok, refused
from tests.models.small import SMALL

EXAMPLE = (2, 3, 64, 96)
TASKS = {"detr-segm": "panoptic", "maskformer": "panoptic", "mask2former": "panoptic"}
# each family in one format, ONNX for one of each kind of attention and of results
FILES = [
    ("detr", ".pt2"), ("detr-segm", ".pt2"), ("deformable-detr", ".pt2"), ("maskformer", ".pt2"),
    ("dino", ".onnx"), ("mask2former", ".onnx"), ("deformable-detr", ".xml"),
]  # fmt: skip


def detector_of(family: str, rng: torch.Generator) -> Detector:
    model = SMALL[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    task = TASKS.get(family, "detection")
    categories = {label: (label + 1, f"thing {label}") for label in range(5)}
    things = frozenset({0, 1, 2}) if task == "panoptic" else None
    return Detector(model, categories, 64, 96, family, task, things=things)


def check_operators_and_names(path: Path, detects: bool) -> None:
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {o.domain: o.version for o in model.opset_import}[""] == write.OPSET
    assert "GridSample" in {node.op_type for node in model.graph.node}
    assert [x.name for x in model.graph.input] == ["images", "sizes", "output_sizes"][: 2 + detects]
    names = ["logits", "boxes", "scores", "labels", "boxes_xyxy"] if detects else ["logits", "masks"]
    assert [x.name for x in model.graph.output] == names
    assert any("thing 3" in entry.value for entry in model.metadata_props)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_every_family_leaves() -> None:
    assert {family for family, _ in FILES} == FAMILIES.keys()
    assert {suffix for _, suffix in FILES} == write.WRITERS.keys()


@pytest.mark.parametrize(("family", "suffix"), FILES, ids="".join)
def test_files_do_what_the_detector_does(
    family: str, suffix: str, tmp_path: Path, rng: torch.Generator
) -> None:
    detector = detector_of(family, rng)
    path = export(detector, tmp_path / f"model{suffix}", example=EXAMPLE)
    assert {file.suffix for file in tmp_path.iterdir()} == (
        {".xml", ".bin"} if suffix == ".xml" else {suffix}
    )
    if suffix == ".onnx":
        check_operators_and_names(path, detects=family == "dino")
    again = load_detector(path)
    assert isinstance(again.model, ExportedModel)
    assert again.description() == detector.description()
    images = PaddedImages.from_list([torch.randn(3, h, w, generator=rng) for h, w in ((64, 96), (50, 40))])
    with torch.no_grad():
        expected, found = detector.model(images), again.model(images)
    close(found.logits, expected.logits[-1:])
    if hasattr(expected, "boxes"):
        close(found.boxes, expected.boxes[-1:])
    if expected.masks is not None:
        close(found.masks, expected.masks[-1:])
    picture = Image.fromarray(np.uint8(np.random.default_rng(0).integers(0, 256, (80, 60, 3))))
    one, other = (predict_image(d, picture, threshold=0.0).records for d in (detector, again))
    assert [record["label"] for record in one] == [record["label"] for record in other]


@pytest.mark.parametrize("points", [None, (3, 1)])
@pytest.mark.parametrize("fused", [0, 2, 4])
def test_attention_in_standard_operators(
    fused: int, points: tuple[int, int] | None, rng: torch.Generator
) -> None:
    layout = (2, 4) if points is None else (4,)
    value = torch.randn(2, 41, 3, 8, generator=rng)
    coordinates = torch.rand(2, 6, 3, *layout, 2, generator=rng) * 1.4 - 0.2
    weights = torch.randn(2, 6, 3, *layout, generator=rng)
    references = torch.rand(2, 6, 2, fused, generator=rng) if fused else None
    call = DeformAttn(value, coordinates, weights, references, None, (5, 7, 3, 2), points, None)
    found = ms_deform_attn_by_grid_sample(*call, None)
    torch.testing.assert_close(found, reference.forward(call), rtol=1e-4, atol=1e-4)


def test_without_processing_and_in_half(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    path = export(detector, tmp_path / "raw.xml", processing=False, half=True, example=EXAMPLE)
    again: Any = load_detector(path).model
    assert (again.names, again.processing) == (("images", "sizes"), False)
    images = PaddedImages.from_list([torch.randn(3, 64, 96, generator=rng)])
    with torch.no_grad():
        found, expected = again(images).boxes, detector.model(images).boxes[-1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
    assert (tmp_path / "raw.bin").stat().st_size < 0.7 * 4 * sum(
        p.numel() for p in detector.model.parameters()
    )


def test_nothing_stays_of_a_file_that_differs(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.pt2").write_bytes(b"from before")
    monkeypatch.setattr(write, "TOLERANCE", -1.0)
    detector = detector_of("detr", rng)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"model\.pt2: logits of images .* is off by nan"):
        export(detector, tmp_path / "model.pt2", example=EXAMPLE)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"from before"


def test_bad_requests(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    with pytest.raises(
        ValueError, match=r"path: expected a name that ends in \.onnx, \.xml, \.pt2; got 'a.trt'"
    ):
        export(detector, tmp_path / "a.trt")
    with pytest.raises(ValueError, match=r"half: expected an OpenVINO file \(\.xml\); got 'a.onnx'"):
        export(detector, tmp_path / "a.onnx", half=True)
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        export(detector, tmp_path / "none" / "a.onnx")
    exported = Detector(ExportedModel(dict, "detr", None, True, 1), {})
    with pytest.raises(ValueError, match="detector: expected one with a network"):
        export(exported, tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match=r"a\.onnx: no such file"):
        load_detector(tmp_path / "a.onnx")


def test_command(tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_of("detr", rng)
    content = {"model": detector.model.state_dict(), "detector": detector.description()}
    torch.save(content, tmp_path / "last.pt")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "red").save("red.png")
    assert "written: a.pt2" in ok("export", "last.pt", "--output", "a.pt2")
    ok("predict", "red.png", "--checkpoint", "a.pt2", "--output", "out", "--threshold", "0")
    assert (tmp_path / "out" / "red.png").is_file()
    assert "expected a name that ends in" in refused("export", "last.pt", "--output", "a.engine")
    torch.onnx  # noqa: B018 - loaded before the module is hidden
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "pip install 'detr_fast[export]'" in refused("export", "last.pt", "--output", "a.onnx")
