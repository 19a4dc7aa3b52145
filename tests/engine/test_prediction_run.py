"""Runs of predictions over files, folders, patterns, videos and standard input; formats, resuming, shares."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from detr_fast.engine import Detector, predict, records
from detr_fast.engine.outputs import distinct_names
from detr_fast.engine.predict import Pictures, predict_sources
from detr_fast.engine.prediction_run import print_predictions, run_predictions
from detr_fast.engine.sources import Source, find_sources, read_video
from tests.engine.test_predict import Fixed
from tests.engine.tiny import SIZE
from tests.export.test_export import detector_of
from tests.paths import ROOT


@pytest.fixture
def detector() -> Detector:
    return Detector(Fixed(), {1: (1, "disc"), 2: (20, "cross")}, SIZE, 2 * SIZE)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs in two folders, one of them damaged, and what is none."""
    folder = tmp_path / "photos"
    for name in ("000000000007.jpg", "b.png", "trip/b.png", "trip/c.webp", ".hidden.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 30), 50).convert("RGB").save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "bad.png").write_text("no picture")
    return folder


def write_video(path: Path, image: Image.Image | None = None, frames: int = 5) -> Path:
    """Of frames that get brighter, or of one image."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            shown = image or Image.new("RGB", (64, 48), (40 * i, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(shown.convert("RGB"))))
        container.mux(stream.encode())
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def run(detector: Detector, images: list[Any], output: Path, **options: Any) -> int:
    return run_predictions(lambda: detector, images, output, **options)


def names(sources: list[Source], root: Path) -> list[tuple[str, str]]:
    return [(str(Path(source.file).relative_to(root)), source.stem) for source in sources]


def test_folders_and_patterns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = [("000000000007.jpg", "000000000007"), ("b.png", "b"), ("bad.png", "bad")]
    assert names(find_sources([photos]), photos) == sorted(flat)
    deep = [*flat, ("trip/b.png", "trip/b"), ("trip/c.webp", "trip/c")]
    assert names(find_sources([photos], recursive=True), photos) == deep
    every = find_sources([f"{photos}/**/*.png"])
    assert names(every, photos) == [("b.png", "b"), ("bad.png", "bad"), ("trip/b.png", "b")]
    assert distinct_names(source.stem for source in every) == ["b", "bad", "b_2"]
    assert len(find_sources([photos, photos / "b.png", f"{photos}/*"])) == 3
    monkeypatch.setenv("HOME", str(photos))
    assert find_sources(["~/trip"])[0].file == str(photos / "trip" / "b.png")
    (photos / "a[1].png").touch()
    assert find_sources([photos / "a[1].png"])[0].file == str(photos / "a[1].png")
    assert find_sources(["absent.png", "-"]) == [Source("absent.png", "absent"), Source("-", "stdin")]
    (photos / "trip" / "loop").symlink_to(photos)
    assert len(find_sources([photos], recursive=True)) == 6
    (photos / "empty").mkdir()
    for given in (photos / "empty", f"{photos}/*.gif"):
        with pytest.raises(ValueError, match=r"images: .* holds no image and no video"):
            find_sources([given])


def test_results_are_not_taken_for_images(detector: Detector, photos: Path) -> None:
    (photos / "bad.png").unlink()
    for _ in range(2):
        assert run(detector, [photos], photos / "out", recursive=True) == 0
        assert len(lines(photos / "out")) == 4
    assert run(detector, [f"{photos}/**/*.png"], photos / "out") == 0
    assert (photos / "out" / "trip" / "b.png").is_file()


def test_every_format_says_the_same(detector: Detector, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(detector, [photos], output, formats=["jsonl", "json", "csv", "coco"], recursive=True) == 1
    expected = lines(output)
    assert json.loads((output / "predictions.json").read_text()) == expected
    assert len(expected) == 4
    assert {path.name for path in output.iterdir()} == {
        "predictions.jsonl", "predictions.json", "predictions.csv", "coco.json", "predictions.settings.json",
    }  # fmt: skip
    with (output / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(record["file"], one) for record in expected for one in record["detections"]]
    assert [(row["file"], row["name"], float(row["x1"])) for row in rows] == [
        (file, one["name"], one["box_xyxy"][2]) for file, one in found
    ]
    coco = json.loads((output / "coco.json").read_text())
    assert [row["image_id"] for row in coco] == [7 if "0007" in file else file for file, _ in found]
    x0, y0, x1, y1 = found[0][1]["box_xyxy"]
    assert coco[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    with pytest.raises(ValueError, match=r"format: expected jsonl, json, csv, .*; got 'xml'"):
        run(detector, [photos], output, formats=["xml"])


def test_coco_ids_come_from_an_annotation_file(detector: Detector, photos: Path, tmp_path: Path) -> None:
    images = [{"id": 90, "file_name": "photos/b.png"}, {"id": 8, "file_name": "000000000007.jpg"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images}))
    run(detector, [photos], tmp_path / "out", formats=["coco"], coco_annotations=tmp_path / "coco.json")
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert {row["image_id"] for row in coco} == {8, 90}


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_label_maps_and_coco_agree(task: str, photos: Path, tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("mask2former", rng).with_task(task)
    assert run(detector, [photos / "b.png"], tmp_path, formats=["coco"], threshold=0.0) == 0
    (record,) = lines(tmp_path)
    assert record["ids"] == "ids/b.png"
    pixels = np.asarray(Image.open(tmp_path / record["ids"])).astype(int)
    coco = json.loads((tmp_path / "coco.json").read_text())
    if task == "panoptic":
        (entry,) = coco["annotations"]
        ids = pixels @ [1, 256, 65536]
        assert entry["file_name"] == "b.png"
        assert all((ids == one["id"]).sum() == one["area"] for one in entry["segments_info"])
        assert [one["category_id"] for one in entry["segments_info"]] == [
            one["category_id"] for one in record["segments"]
        ]
        assert {one["name"] for one in coco["categories"]} == {f"thing {i}" for i in range(5)}
    else:
        for entry in coco:
            mask = rle.decode(entry["segmentation"]).astype(bool)
            np.testing.assert_array_equal(mask, pixels == entry["category_id"] - 1)
        assert len(coco) == len(record["classes"]) > 0


def test_a_killed_run_goes_on(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run(detector, [photos], tmp_path / "whole", recursive=True) == 1
    expected = lines(tmp_path / "whole")
    write = records.RecordFile.write

    def killed(self: records.RecordFile, record: dict[str, Any]) -> None:
        if record["file"].endswith("trip/b.png"):
            self._file.write(b'{"file": "torn')
            raise KeyboardInterrupt
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(records.RecordFile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(detector, [photos], output, recursive=True)
    assert [path.name for path in output.glob("*.part")] == ["predictions.jsonl.part"]
    with pytest.raises(ValueError, match=r"jsonl\.part is of an unfinished run; go on with --resume"):
        run(detector, [photos], output, recursive=True)
    with pytest.raises(ValueError, match=r"resume: pictures was \['overlays', 'label-maps'\]; got \[\]"):
        run(detector, [photos], output, recursive=True, resume=True, formats=["csv"])
    with pytest.raises(ValueError, match=r"resume: threshold was None; got 0\.9"):
        run(detector, [photos], output, recursive=True, resume=True, threshold=0.9)
    seen = detector.model.seen  # type: ignore[attr-defined]
    seen.clear()
    assert run(detector, [photos], output, recursive=True, resume=True) == 1
    assert len(seen) == 2
    assert lines(output) == expected
    assert json.loads((output / "predictions.json").read_text()) == expected
    assert not list(output.glob("*.part"))
    # what was finished goes on, too, and what is there keeps its name
    Image.new("RGB", (20, 20)).save(photos / "b.bmp")
    before = (output / "b.png").read_bytes()
    seen.clear()
    run(detector, [photos], output, recursive=True, resume=True)
    assert len(seen) == 1
    assert lines(output)[:4] == expected
    assert (output / "b.png").read_bytes() == before
    assert Image.open(output / "b_2.png").size == (20, 20)


def test_a_damaged_line_is_named(detector: Detector, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl.part").write_text('{"file": "a.png", "width": 3}\n\0\0\0\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl\.part: line 2: expected a record; got b"):
        run(detector, [photos], tmp_path, resume=True)


def test_odd_names_are_recognised(detector: Detector, tmp_path: Path) -> None:
    odd = [tmp_path / name for name in ('a"b\\c.png', "новое фото.png", "x, .png")]
    for path in odd:
        Image.new("RGB", (9, 9)).save(path)
    run(detector, odd, tmp_path / "out")
    seen = detector.model.seen  # type: ignore[attr-defined]
    seen.clear()
    run(detector, odd, tmp_path / "out", resume=True)
    assert not seen
    assert [record["file"] for record in lines(tmp_path / "out")] == [str(path) for path in odd]


def test_shares_cover_everything_once_under_the_same_names(detector: Detector, photos: Path) -> None:
    sources = find_sources([f"{photos}/**/*"])
    done = {str(photos / "b.png"): set[int]()}
    shares = [list(predict_sources(detector, sources, done=done, shard=(i, 3))) for i in range(3)]
    files = [record["file"] for share in shares for record in share]
    expected = {source.file for source in sources} - done.keys() - {str(photos / "bad.png")}
    assert sorted(files) == sorted(expected)


def test_lines_of_several_processes_are_joined(tmp_path: Path) -> None:
    for rank in range(3):
        with records.RecordFile(tmp_path, rank, 3) as file:
            file.write({"file": f"{rank}.png", "width": 1})
    records.finish(tmp_path)
    assert sorted(record["file"] for record in lines(tmp_path)) == ["0.png", "1.png", "2.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_torchrun_shares_a_folder(photos: Path, tmp_path: Path, rng: torch.Generator) -> None:
    tiny = detector_of("detr", rng)
    torch.save({"model": tiny.model.state_dict(), "detector": tiny.description()}, tmp_path / "a.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    (photos / "bad.png").unlink()
    arguments = [photos, "--recursive", "--checkpoint", tmp_path / "a.pt", "--output", tmp_path / "out"]
    done = subprocess.run(
        [*command, "detr_fast", "predict", *map(str, arguments), "--device", "cpu", "--format", "csv,json"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 images" in done.stdout
    found = lines(tmp_path / "out")
    assert sorted(record["file"] for record in found) == [
        x.file for x in find_sources([photos], recursive=True)
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.jsonl", "predictions.json", "predictions.csv", "predictions.settings.json",
    }  # fmt: skip


def test_videos(detector: Detector, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    assert run(detector, [video], tmp_path / "out", every=2, formats=["overlays", "csv"]) == 0
    found = lines(tmp_path / "out")
    assert [(record["frame"], record["seconds"]) for record in found] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    assert {record["file"] for record in found} == {str(video)}
    drawn = sorted(path.name for path in (tmp_path / "out" / "clip").iterdir())
    assert drawn == ["000000.png", "000002.png", "000004.png"]
    assert Image.open(tmp_path / "out" / "clip" / "000002.png").size == (64, 48)
    assert [frame.index for frame in read_video(str(video), 2, {0, 4})] == [2]


def test_videos_are_turned_upright(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", Image.linear_gradient("L").resize((64, 48)).rotate(-90))
    content = bytearray(video.read_bytes())
    place = content.index(b"tkhd") + 44  # of the track's matrix: a quarter turn clockwise, as phones write it
    assert struct.unpack(">9i", content[place : place + 36])[0] == 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    stored = np.asarray(next(read_video(str(video))).image).astype(int)
    video.write_bytes(content)
    turned = np.asarray(next(read_video(str(video))).image).astype(int)
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


def test_frames_of_videos_spare_photographs(detector: Detector, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    photo = tmp_path / "out" / "clip" / "000003.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(ValueError, match=r"output: .*clip/000003\.png would be written over the input"):
        run(detector, [video, photo], tmp_path / "out")
    assert photo.read_bytes() == before


def test_bad_videos_are_named(detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    whole = write_video(tmp_path / "whole.mp4")
    assert run(detector, [tmp_path / "bad.mp4", whole, tmp_path / "absent.mp4"], tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'bad.mp4'}: Invalid data" in err
    assert f"error: {tmp_path / 'absent.mp4'}: no such video file" in err
    assert len(lines(tmp_path / "out")) == 5


def test_standard_input_and_output(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO()
    Image.new("RGB", (40, 30)).save(content, "PNG")
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(content.getvalue())}))
    assert print_predictions(lambda: detector, ["-"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["file"] == "-"
    assert json.loads(line)["width"] == 40
    assert print_predictions(lambda: detector, ["-"]) == 1
    assert "error: standard input: the file is empty" in capsys.readouterr().err


def test_no_more_images_than_needed_are_in_memory(
    detector: Detector, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    read = predict.read_image

    def counted(source: Source) -> Image.Image:
        loaded.append(source.file)
        return read(source)

    monkeypatch.setattr(predict, "read_image", counted)
    sources = [Source(str(photos / "b.png"), str(i)) for i in range(100)]
    for given, _ in enumerate(predict_sources(detector, sources, workers=1, batch_size=2), start=1):
        assert len(loaded) <= given + 10
    assert given == len(loaded) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: expected at least 1; got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1; got 0"),
        ({"workers": 0}, "workers: expected at least 1; got 0"),
        ({"threshold": 2}, r"threshold: expected a score in 0\.\.1; got 2"),
    ],
)
def test_options_are_checked_first(
    options: dict[str, Any], message: str, detector: Detector, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(detector, [photos], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_batches_that_do_not_fit_go_one_by_one(
    detector: Detector, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = type(detector.model)
    forward = model.forward

    def small(self: Any, images: Any) -> Any:
        if len(images) > 1:
            raise torch.OutOfMemoryError("too much")
        return forward(self, images)

    monkeypatch.setattr(model, "forward", small)
    sources = find_sources([photos / "b.png", photos / "trip" / "c.webp"])
    assert len(list(predict_sources(detector, sources, batch_size=2))) == 2
    assert Pictures(True, False, True).folders == ["", "attention/"]
