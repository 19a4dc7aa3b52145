"""Exported files do what the detector does, whatever the batch and the sizes, and say what they are."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.engine import FAMILIES, Detector, load_detector, predict_image
from detr_fast.engine.exported import ExportedModel
from detr_fast.export import FORMATS, check, export, format_of, program, trtexec_lines, writers
from detr_fast.export.attention import ms_deform_attn_by_grid_sample
from detr_fast.ops.ms_deform_attn import reference
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.structures import PaddedImages
from tests.cli.running import ok, refused
from tests.models.small import SMALL

EXAMPLE = (2, 3, 64, 96)
# "Supported ONNX Operators" of TensorRT 10.1, opsets 9 to 20; docs/operators.md of onnx/onnx-tensorrt
TENSORRT = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten
Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If
ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization
Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Upsample Where Xor
"""
TASKS = {"detr-segm": "panoptic", "maskformer": "panoptic", "mask2former": "panoptic"}


def detector_of(family: str, rng: torch.Generator) -> Detector:
    small: Any = SMALL[family]()
    fewer = {"num_feature_levels": 3} if family == "deformable-detr" else {}
    model = type(small)(replace(small.config, dec_layers=1, **fewer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    task = TASKS.get(family, "detection")
    categories = {label: (label + 1, f"thing {label}") for label in range(5)}
    things = frozenset({0, 1, 2}) if task == "panoptic" else None
    return Detector(model, categories, 64, 96, family, task, things=things)


def check_operators_and_names(model: onnx.ModelProto, family: str) -> None:
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {o.domain: o.version for o in model.opset_import} == {"": writers.OPSET}
    operators = {node.op_type for node in model.graph.node}
    assert ("GridSample" in operators) == (family in ("deformable-detr", "dino", "mask2former"))
    detects = FAMILIES[family].detections is not None
    assert [x.name for x in model.graph.input] == ["images", "sizes", "output_sizes"][: 2 + detects]
    names = ["logits", *(["boxes"] if family not in ("maskformer", "mask2former") else [])]
    names += [] if FAMILIES[family].detections is not None and "segm" not in family else ["masks"]
    names += ["scores", "labels", "boxes_xyxy"] if detects else []
    assert [x.name for x in model.graph.output] == names
    about = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "detr_fast"))
    assert about["categories"]["3"] == [4, "thing 3"]
    assert (about["image_size"], about["max_size"], about["family"]) == (64, 96, family)
    assert {"task", "threshold", "processing", "size_multiple"} <= about.keys()


def check_for_tensorrt(model: onnx.ModelProto) -> None:
    """Within TensorRT's documented operators and what it restricts of those that are here."""
    constants = {x.name for x in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    for node in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type in TENSORRT.split(), node.op_type
        if node.op_type == "CumSum":
            assert node.input[1] in constants
        if node.op_type == "TopK":
            assert given.get("sorted", 1) == 1
        if node.op_type in ("ScatterND", "ScatterElements"):
            assert given.get("reduction", b"none") == b"none"
        if node.op_type == "Resize":
            assert given.get("mode", b"nearest") in (b"nearest", b"linear")
            assert not given.get("antialias")
        if node.op_type == "GridSample":
            assert given.get("mode") in (b"linear", b"bilinear")
            assert given.get("padding_mode") == b"zeros"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.fixture
def recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time goes into recording: OpenVINO's file is made from the ONNX file that is there."""
    files: dict[int, bytes] = {}
    write = writers.write_onnx

    def written_once(detector: Detector, path: Path, options: writers.Options) -> None:
        if id(detector) not in files:
            write(detector, path, options)
            files[id(detector)] = path.read_bytes()
        path.write_bytes(files[id(detector)])

    monkeypatch.setattr(writers, "write_onnx", written_once)
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=written_once))


def check_answers(detector: Detector, again: Detector, rng: torch.Generator) -> None:
    """On a batch of two sizes, none of them a multiple of a stride, and on a picture."""
    assert isinstance(again.model, ExportedModel)
    assert again.description() == detector.description()
    images = PaddedImages.from_list([torch.randn(3, h, w, generator=rng) for h, w in ((64, 99), (51, 40))])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_leaves_in_every_format(
    family: str, tmp_path: Path, rng: torch.Generator, recorded_once: None
) -> None:
    detector = detector_of(family, rng)
    for name in ("onnx", "openvino", "torch"):
        path = export(detector, tmp_path / f"model{FORMATS[name].suffix}", format=name, example=EXAMPLE)
        check_answers(detector, load_detector(path), rng)
    assert {file.suffix for file in tmp_path.iterdir()} == {".onnx", ".xml", ".bin", ".pt2"}
    model = onnx.load(tmp_path / "model.onnx")
    check_operators_and_names(model, family)
    check_for_tensorrt(model)


def test_the_formats_are_all_tried() -> None:
    here = {"onnx", "openvino", "torch", "tensorrt"}
    elsewhere = {"aoti": "test_aoti.py", "transformers": "test_transformers_folder.py"}
    assert here | elsewhere.keys() == FORMATS.keys()
    assert all(Path(__file__).with_name(file).is_file() for file in elsewhere.values())


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


def test_nothing_stays_of_a_file_that_differs(tmp_path: Path, rng: torch.Generator) -> None:
    (tmp_path / "model.pt2").write_bytes(b"from before")
    detector = detector_of("detr", rng)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"model\.pt2: of images .* logits are off by nan.*was not kept"):
        export(detector, tmp_path / "model.pt2", example=EXAMPLE)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"from before"


class Fickle(nn.Module):
    """What no graph can hold: a choice by values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_recorded_is_named(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    model: Any = detector.model
    model.input_proj = nn.Sequential(model.input_proj, Fickle())
    with pytest.raises(
        ValueError, match=r"model: input_proj\.1 \(Fickle\) cannot be recorded as a graph: \S"
    ):
        export(detector, tmp_path / "model.onnx", example=EXAMPLE)
    assert not list(tmp_path.iterdir())


def detections(*rows: tuple[float, int, float]) -> dict[str, torch.Tensor]:
    """Of (score, label, place of the box)."""
    scores, labels, places = zip(*rows, strict=True)
    boxes = torch.tensor(places)[:, None] + torch.tensor([0.0, 0.0, 10.0, 10.0])
    return {"scores": torch.tensor(scores), "labels": torch.tensor(labels), "boxes_xyxy": boxes}


def test_detections_are_compared_as_sets() -> None:
    ours = detections((0.9, 1, 5.0), (0.9, 2, 50.0), (0.51, 3, 70.0), (0.1, 4, 5.0))
    limits = (0.5, 0.02, 0.5)
    swapped = detections((0.9, 2, 50.1), (0.9, 1, 5.0), (0.49, 3, 70.0), (0.1, 0, 99.0))
    assert check.unmatched(ours, swapped, *limits) == check.unmatched(swapped, ours, *limits) == 0
    for row in ((0.9, 0, 5.0), (0.9, 1, 6.0), (0.8, 1, 5.0)):
        other = detections(row, (0.9, 2, 50.0), (0.51, 3, 70.0), (0.1, 4, 5.0))
        assert check.unmatched(ours, other, *limits) == 1
    cut_off = detections((0.9, 1, 5.0), (0.9, 2, 50.0))
    assert check.unmatched(ours, cut_off, *limits) == 0, "as good as the last that a full list still holds"


def test_a_file_with_other_labels_is_refused(rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    network = program.Portable(detector, True)
    names = ("images", "sizes", "output_sizes")

    def run(inputs: Any) -> Any:
        with torch.no_grad():
            outputs = network(*(torch.from_numpy(inputs[name]) for name in names))
        return {name: (x + (name == "labels")).numpy() for name, x in outputs.items()}

    with pytest.raises(ValueError, match=r"detections above .* have no match of the same label"):
        check.check(detector, run, Path("a.onnx"), True, EXAMPLE)


def test_bad_requests(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    for bad, message in (
        (
            {"path": "a.trt"},
            r"path: expected a name that ends in \.onnx, \.xml, \.pt2, or a format; got 'a.trt'",
        ),
        ({"path": "a"}, "path: expected a name that ends in"),
        ({"path": "a.onnx", "half": True}, "half: expected the format openvino; got onnx"),
        (
            {"path": "a.onnx", "format": "torch"},
            r"path: expected a name that ends in \.pt2 for torch; got 'a.onnx'",
        ),
        (
            {"path": "a.onnx", "format": "transformers"},
            "expected a folder's name for transformers; got 'a.onnx'",
        ),
        ({"path": "a.onnx", "format": "Open-Vino"}, r"format: expected one of .*did you mean openvino\?"),
        ({"path": "a.onnx", "format": "caffe2"}, r"format: expected one of .*; got 'caffe2'$"),
        ({"path": "a.onnx", "example": (1, 3, 64, 96)}, "example: expected a batch of 2 or more"),
    ):
        given: dict[str, Any] = {"example": EXAMPLE, **bad}
        with pytest.raises(ValueError, match=message):
            export(detector, tmp_path / given.pop("path"), **given)
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        export(detector, tmp_path / "none" / "a.onnx")
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(IsADirectoryError, match=r"b\.onnx: expected a file's name; got a folder"):
        export(detector, tmp_path / "b.onnx")
    exported = Detector(ExportedModel(dict, "detr", None, True, 1), {})
    with pytest.raises(ValueError, match="detector: expected one with a network"):
        export(exported, tmp_path / "a.onnx")
    elsewhere = Detector(nn.Linear(2, 2, device="meta"), {})
    with pytest.raises(ValueError, match="detector: expected its model on the CPU; got meta"):
        export(elsewhere, tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match=r"a\.onnx: no such file"):
        load_detector(tmp_path / "a.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["b.onnx"]


def test_a_folder_that_cannot_be_written(rng: torch.Generator, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    # nobody may write there, not even root
    for folder in (locked, Path("/proc")) if os.geteuid() else (Path("/proc"),):
        with pytest.raises(OSError, match=re.escape(str(folder))):
            export(detector_of("detr", rng), folder / "a.pt2", example=EXAMPLE)


def test_foreign_checkpoints(tmp_path: Path) -> None:
    torch.save({"model": {"layers.0.weight": torch.ones(3)}}, tmp_path / "other.pt")
    message = refused("export", tmp_path / "other.pt", "--output", tmp_path / "a.onnx")
    assert "expected a checkpoint of detr or" in message
    (tmp_path / "notes.onnx").write_text("no model at all")
    assert "error: " in refused("export", tmp_path / "notes.onnx", "--output", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_the_line_for_tensorrt(rng: torch.Generator) -> None:
    detector = replace(detector_of("detr", rng), image_size=800, max_size=1333)
    line, precision = trtexec_lines(detector, Path("m.onnx"))
    assert line.startswith(
        "for TensorRT: trtexec --onnx=m.onnx --saveEngine=m.engine --minShapes=images:1x3x384x384"
    )
    assert "--optShapes=images:1x3x800x1344,sizes:1x2,output_sizes:1x2" in line
    assert "--maxShapes=images:4x3x1344x1344,sizes:4x2,output_sizes:4x2" in line
    assert "float32" in precision
    assert "output_sizes" not in trtexec_lines(detector, Path("m.onnx"), processing=False)[0]


def test_formats_by_name_and_suffix() -> None:
    assert [format_of(Path(f"a{s}"), None).name for s in (".onnx", ".xml", ".pt2")] == [
        "onnx",
        "openvino",
        "torch",
    ]
    assert format_of(Path("a.pt2"), "aoti").name == "aoti"
    assert format_of(Path("a.onnx"), "tensorrt").name == "tensorrt"
    assert format_of(None, "transformers").suffix == ""
    assert format_of(Path("v1.2"), "transformers").name == "transformers"


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
    assert "did you mean onnx?" in refused("export", "last.pt", "--format", "onxx")
    torch.onnx  # noqa: B018 - loaded before the module is hidden
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "pip install 'detr_fast[export]'" in refused("export", "last.pt", "--output", "a.onnx")
    assert "pip install 'detr_fast[export]'" in refused("export", "last.pt", "--format", "tensorrt")
