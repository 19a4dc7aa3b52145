"""Each command as a person calls it, and what it says to wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from detr_fast import bench, cli
from detr_fast.engine import FAMILIES, Trainer
from detr_fast.engine.checkpointing import read_training_checkpoint
from detr_fast.engine.logs import read_log
from detr_fast.metrics import coco_metrics
from detr_fast.ops import OPERATORS
from tests.cli.running import ok, refused, run
from tests.engine.tiny import SIZE, write_data

SMALL = ["--image-size", str(SIZE), "--num-workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"), train_images=4, val_images=2)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by `detr-fast train`."""
    output = tmp_path_factory.mktemp("run")
    text = ok(
        "train", "--data", data, "--output", output, "--model", "detr-r18", "--num-queries", 4, "--epochs", 1,
        "--accumulate", 2, "--ema", 0.9, "--amp", *SMALL,
    )  # fmt: skip
    assert "(AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in text
    return output


def test_train_leaves_checkpoints_and_goes_on(data: Path, trained: Path) -> None:
    assert {"last.pt", "best.pt", "log.jsonl", "tensorboard"} <= {path.name for path in trained.iterdir()}
    again = ["train", "--data", data, "--output", trained, "--model", "detr-r18", "--num-queries", 4,
             "--accumulate", 2, "--ema", 0.9, "--amp", *SMALL]  # fmt: skip
    assert "holds a run already" in refused(*again, "--epochs", 2)
    ok(*again, "--epochs", 2, "--resume")
    assert [record["epoch"] for record in read_log(trained, "eval")] == [1, 2]
    assert "seed: 42 then, 7 now" in refused(*again, "--epochs", 3, "--resume", "--seed", 7)


def test_a_run_goes_on_with_its_own_options(data: Path, tmp_path: Path) -> None:
    """Those that are not given are what they were, the data set's folder and the model among them."""
    train = ["train", "--output", tmp_path]
    own = ["--model", "deformable-detr-tiny", "--num-queries", 4, "--lr", 1e-3, "--batch-size", 1,
           "--ema", 0.5, "--augmentation", "lsj", *SMALL]  # fmt: skip
    first = ok(*train, "--data", data, *own, "--epochs", 1, "--resume", "auto")
    assert "model: deformable-detr with conv_stem" in first
    assert "4 images, " in first
    assert "classes: disc" in first, first
    assert "1 images each, 4 an epoch, 1 epochs; learning rates 0.001, 0.0005, 0.0001" in first
    assert "about" in first
    before = read_training_checkpoint(tmp_path / "last.pt")["training"]
    assert "nothing left to do: all 1 epochs are done" in ok(*train, "--resume", "auto")
    ok(*train, "--resume", "--epochs", 2)
    after = read_training_checkpoint(tmp_path / "last.pt")["training"]
    assert after["progress"]["step"] == 8
    assert after["config"] == before["config"] | {"epochs": 2}
    assert (after["options"], after["source"]) == (before["options"], before["source"])
    for option, refusal in (
        (["--augmentation", "detr"], "augmentation: lsj then, detr now"),
        (["--image-size", 64], f"image_size: {SIZE} then, 64 now"),
        (["--skip-bad-images"], "skip_bad_images: False then, True now"),
        (["--num-queries", 5], "model num_queries: 4 then, 5 now"),
        (["--ema", 0.6], "ema: 0.5 then, 0.6 now"),
        (["--model", "detr-tiny"], "holds deformable-detr"),
    ):
        assert refusal in refused(*train, "--resume", *option, "--epochs", 3)


def test_a_run_that_is_not_evaluated_stays_so(tmp_path: Path) -> None:
    """Its files are named by hand, and there are none to validate on."""
    data = write_data(tmp_path / "data", train_images=2, val_images=1)
    train = ["train", "--output", tmp_path / "run"]
    annotations = data / "annotations/instances_train2017.json"
    files = ["--train-json", annotations, "--train-images", data / "train2017"]
    ok(*train, *files, "--model", "detr-tiny", "--no-evaluate", "--epochs", 1, *SMALL)
    ok(*train, "--resume", "--epochs", 2, "--log-every", 1)
    assert [record["step"] for record in read_log(tmp_path / "run", "train")] == [1, 2]
    assert not read_log(tmp_path / "run", "eval")


def test_eval_prints_twelve_numbers(data: Path, trained: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "new" / "numbers.json"
    text = ok(
        "eval", "--checkpoint", trained / "best.pt", "--data", data, "--json", numbers, "--num-workers", 0
    )
    assert len(text.strip().splitlines()) == 12
    assert len(json.loads(numbers.read_text())) == 12

    found = tmp_path / "found.json"
    evaluate = ["eval", "--checkpoint", trained / "best.pt", "--data", data, "--num-workers", 0]
    assert ok(*evaluate, "--evaluator", "pycocotools", "--save-predictions", found) == text
    annotations = data / "annotations" / "instances_val2017.json"
    assert coco_metrics(annotations, json.loads(found.read_text())) == json.loads(numbers.read_text())
    assert "would be written over the input" in refused(*evaluate, "--save-predictions", trained / "best.pt")


def test_predict_writes_json_and_overlays(data: Path, trained: Path, tmp_path: Path) -> None:
    images = sorted((data / "val2017").iterdir())
    ok("predict", *images, "--checkpoint", trained / "last.pt", "--output", tmp_path, "--threshold", 0)
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert [record["file"] for record in records] == [str(image) for image in images]
    for record, image in zip(records, images, strict=True):
        assert {"file", "width", "height", "detections"} == record.keys()
        for detection in record["detections"]:
            assert {"label", "category_id", "name", "score", "box_xyxy"} == detection.keys()
        assert Image.open(tmp_path / f"{image.stem}.png").size == (SIZE, SIZE)


def test_predict_goes_on_after_bad_files(data: Path, trained: Path, tmp_path: Path) -> None:
    good = next((data / "val2017").iterdir())
    (tmp_path / "bad.png").write_text("no picture")
    files = [tmp_path / "bad.png", good, tmp_path / "absent.png"]
    result = run("predict", *files, "--checkpoint", trained / "last.pt", "--output", tmp_path / "out")
    assert result.exit_code == 1
    for line in ("bad.png: not an image", "absent.png: no such image file", "2 of 3 files could not be used"):
        assert line in result.output
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [record["file"] for record in records] == [str(good)]


def test_outputs_spare_inputs(data: Path, trained: Path, tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    Image.new("RGB", (40, 30)).save(image)
    before = image.read_bytes()
    predict = ["predict", image, "--checkpoint", trained / "last.pt", "--output", image.parent]
    assert "would be written over the input" in refused(*predict)
    assert image.read_bytes() == before
    evaluate = ["eval", "--checkpoint", trained / "last.pt", "--data", data, "--json"]
    for path in (trained / "last.pt", data / "annotations" / "instances_val2017.json"):
        assert "would be written over the input" in refused(*evaluate, path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_training_with_their_code(
    number: int, code: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def interrupted(self, batches):
        os.kill(os.getpid(), number)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    train = ["train", "--data", data, "--output", tmp_path, "--model", "detr-tiny", *SMALL]
    result = run(*train)
    assert result.exit_code == code
    assert "after step 1; " in result.output
    assert f"go on with: detr-fast train --output {tmp_path} --resume" in result.output
    assert (tmp_path / "last.pt").exists()


def test_fine_tuning_from_other_classes(data: Path, trained: Path, tmp_path: Path) -> None:
    arguments = [
        "train", "--data", data, "--output", tmp_path, "--weights", trained / "best.pt",
        "--epochs", 1, "--no-evaluate", "--num-classes", 20, *SMALL,
    ]  # fmt: skip
    assert "has 8 classes and 20 are needed: the first 8 are taken, the others start afresh" in ok(*arguments)
    assert not (tmp_path / "best.pt").exists()


def test_doctor_names_every_operator_and_backend() -> None:
    text = ok("doctor")
    for operator in OPERATORS:
        assert f"{operator.name} on cpu" in text
    for backend in ("cuda", "triton", "cpu", "reference"):
        assert text.count(f"  {backend} ") >= len(OPERATORS)
    assert f"torch        {torch.__version__}" in text


def test_bench_hands_on_its_arguments_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "detr_fast.cli.bench.run_benchmarks", lambda arguments: calls.append(arguments) or len(calls) - 1
    )
    ok("bench", "--quick", "--json", "a.json", "--help")
    assert calls == [["--quick", "--json", "a.json", "--help"]]
    assert run("bench").exit_code == 1


def test_bench_outside_a_clone_says_where_to_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "_CLONE", tmp_path)
    assert "run `python -m benchmarks` in a clone" in refused("bench", "--quick")


def test_demo_takes_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("detr_fast.cli.demo.run_demo", lambda output, echo: seen.append(output))
    ok("demo", "--output", tmp_path)
    assert seen == [tmp_path]


def test_help_loads_no_command_and_says_what_they_say() -> None:
    program = """
import sys
from detr_fast.cli import main
try:
    main()
finally:
    print({"torch", "numpy", "PIL"} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("set()\n")
    for name, (module, line) in cli.COMMANDS.items():
        command = typer.main.get_command(import_module(f"detr_fast.cli.{module}").app)
        assert " ".join(command.help.split("\n\n")[0].split()) == line, name


def test_help_tells_the_commands_models_and_defaults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from detr_fast.cli import main; main()", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in ("train", "eval", "predict", "bench", "demo", "doctor"):
        assert command in done.stdout
    wide = CliRunner(env={"COLUMNS": "2000"}).invoke(cli.app, ["train", "--help"]).stdout
    assert "Learning rate. Default: 0.0001, deformable-detr 0.0002" in wide
    for family, about in FAMILIES.items():
        assert f"{family} ({', '.join(f'-{variant}' for variant in about.variants)})" in wide
        assert f"{family}: {', '.join(about.tasks)}" in wide


def test_wrong_data(trained: Path, data: Path, tmp_path: Path) -> None:
    train = ["train", "--output", tmp_path / "run", *SMALL, "--data"]
    (tmp_path / "empty").mkdir()
    assert "no train split found; expected in it annotations/instances_{train,val}2017.json" in refused(
        *train, tmp_path / "empty"
    )
    broken = tmp_path / "broken"
    (broken / "annotations").mkdir(parents=True)
    (broken / "train2017").mkdir()
    annotations = broken / "annotations" / "instances_train2017.json"
    annotations.write_text("{")
    assert "instances_train2017.json: not a JSON file" in refused(*train, broken)
    annotations.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert "empty data set" in refused(*train, broken)
    assert "num_classes = 3" in refused(*train, data, "--num-classes", 3)
    evaluate = ["eval", "--checkpoint", trained / "last.pt", "--data", data]
    assert "split: expected 'train' or 'val'" in refused(*evaluate, "--split", "test")


def test_damaged_image_stops_or_is_skipped(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train_images=4, val_images=1)
    image = sorted((root / "train2017").iterdir())[1]
    image.write_bytes(image.read_bytes()[:200])
    train = [
        "train", "--data", root, "--model", "detr-r18", "--num-queries", 4,
        "--epochs", 1, "--no-evaluate", *SMALL,
    ]  # fmt: skip
    assert image.name in refused(*train, "--output", tmp_path / "a")
    ok(*train, "--output", tmp_path / "b", "--skip-bad-images")


def test_wrong_checkpoints(data: Path, trained: Path, tmp_path: Path) -> None:
    evaluate = ["eval", "--data", data, "--num-workers", 0, "--checkpoint"]
    assert "no such checkpoint" in refused(*evaluate, tmp_path / "absent.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    assert "noise.pt" in refused(*evaluate, tmp_path / "noise.pt")
    torch.save({"model": cli.main}, tmp_path / "code.pt")
    assert "could run code" in refused(*evaluate, tmp_path / "code.pt")
    torch.save({"model": {"layer4.0.conv1.weight": torch.zeros(2)}}, tmp_path / "resnet.pt")
    assert "resnet.pt" in refused(*evaluate, tmp_path / "resnet.pt")
    assert "holds detr with resnet18" in refused(*evaluate, trained / "last.pt", "--model", "detr-r50")
    content = torch.load(trained / "last.pt")
    content["detector"]["config"]["num_classes"] = 3
    for name in ("class_embed.weight", "class_embed.bias"):
        content["model"][name] = content["model"][name][:4]
    torch.save(content, tmp_path / "three.pt")
    assert "num_classes = 3" in refused(*evaluate, tmp_path / "three.pt")


def test_wrong_images_and_values(trained: Path, data: Path, tmp_path: Path) -> None:
    predict = ["predict", "--checkpoint", trained / "last.pt", "--output", tmp_path / "out"]
    image = next((data / "val2017").iterdir())
    assert "threshold: expected a score in 0..1" in refused(*predict, image, "--threshold", 2)
    assert "device: expected" in refused(*predict, image, "--device", "abacus")
    train = ["train", "--data", data, "--output", tmp_path / "run", *SMALL]
    assert "model: expected one of" in refused(*train, "--model", "yolo")
    assert "; did you mean detr-r50" in refused(*train, "--model", "detr-r5")
    assert "batch of 9; take a smaller one" in refused(*train, "--model", "detr-tiny", "--batch-size", 9)
    assert refused("train", "--data", tmp_path / "absent", "--output", tmp_path / "run").endswith(
        "absent: no such folder"
    )
    assert "epochs: expected >= 1" in refused(*train, "--epochs", 0)
    assert "last.pt: no such checkpoint" in refused(*train, "--model", "detr-r18", "--resume")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_line_that_tells_how_to_go_on(workers: int, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train_images=2, val_images=1)
    for image in (data / "train2017").iterdir():
        image.write_bytes(image.read_bytes()[:-40])
    error = refused(
        *("train", "--data", data, "--output", tmp_path / "run", "--model", "detr-tiny", "--no-evaluate"),
        *(*SMALL, "--num-workers", workers),
    )
    assert "train2017" in error
    assert error.endswith("; --skip-bad-images trains without such images")


def test_home_is_expanded_inside_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["--data", "~/absent"], ["--data=~/absent"]):
        assert f"{tmp_path}/absent: no such folder" in refused("train", *arguments, "--output", "~/run")


def test_warnings_show_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back
    refused("train", "--data", tmp_path / "absent", "--output", tmp_path)
    shown = warnings.formatwarning("Corrupt EXIF data", UserWarning, "PIL/TiffImagePlugin.py", 950)
    assert shown == "WARNING: Corrupt EXIF data\n"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("--debug", "eval", "--checkpoint", tmp_path / "absent.pt", "--data", tmp_path)
    assert isinstance(result.exception, FileNotFoundError)
